"""A worker gets its identity from its environment."""

from pathlib import Path

from inferd.config.daemon import WORKER_VARIABLE
from inferd.workers.worker_identity import WorkerIdentity


def test_what_the_environment_says_is_read_again(tmp_path: Path) -> None:
    identity = WorkerIdentity(1, 3, tmp_path)
    assert WorkerIdentity.of({"PATH": "/bin", **identity.environment()}) == identity
    assert WorkerIdentity.of({"PATH": "/bin"}) is None


def test_each_knows_the_others_and_where_they_listen(tmp_path: Path) -> None:
    identity = WorkerIdentity(1, 3, tmp_path)
    assert identity.others == (0, 2)
    assert identity.socket("grpc") == tmp_path / "1.grpc"
    assert identity.socket("grpc", 0) == tmp_path / "0.grpc"
    assert not identity.first


def test_the_secret_is_new_each_time_and_not_shown(tmp_path: Path) -> None:
    one, other = WorkerIdentity(0, 2, tmp_path), WorkerIdentity(0, 2, tmp_path)
    assert one.secret != other.secret
    assert one.secret not in repr(one)
    assert list(one.environment()) == [WORKER_VARIABLE]
