"""Two daemons on one port: only if both are configured for it, and clients reach only one that is ready."""

import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from inferd.rpc.client import InferenceClient
from inferd.tensors import DType
from tests import models
from tests.system.daemon import Daemon
from tests.system.slow_start import starting

pytestmark = pytest.mark.system


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models.save(models.identity(DType.INT64, [-1]), tmp_path / "models", "echo")
    return tmp_path / "models"


def connects(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_one_takes_over_from_the_other_on_its_port(repository: Path) -> None:
    with Daemon(repository, "--reuse-port") as old, Daemon(repository, "--reuse-port", "--grpc-bind", old.grpc) as new:
        assert new.grpc == old.grpc
        assert old.stop(signal.SIGTERM) == 0
        with InferenceClient(new.grpc) as client:
            assert client.infer("echo", {"x": np.array([7])})["x"].tolist() == [7]


@pytest.mark.parametrize(("first", "second"), [((), ()), (("--reuse-port",), ()), ((), ("--reuse-port",))])
def test_a_port_is_shared_by_those_only_that_both_want_it(
    first: tuple[str, ...], second: tuple[str, ...], repository: Path
) -> None:
    with Daemon(repository, *first) as old:
        new = Daemon(repository, *second, "--grpc-bind", old.grpc)
        assert new.process.wait(60) == 78
        new.kill()
        assert "grpc_bind: can't listen on" in new.log()


def test_a_daemon_that_shares_its_port_is_not_found_there_before_it_is_ready(tmp_path: Path) -> None:
    with starting(tmp_path / "models", tmp_path / "cache", "--reuse-port") as found:
        assert connects(found.metrics)
        assert not connects(found.grpc)
        assert found.daemon.stop(signal.SIGTERM) == 0
