"""The calls that a real daemon makes to itself: they take nothing from its clients, and leave nothing behind."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from inferd.tensors import DType
from tests import models
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.series import Series, scrape
from tests.system.wire import connect, echo, method

pytestmark = pytest.mark.system

PROBES = "inferd_accept_wait_seconds_count"
PATIENCE = 60.0
# As few of everything as there may be.
NARROW = ("--max-connections", "1", "--max-concurrent-streams", "1", "--max-metadata-bytes", "1024")
BRIEF = ("--connection-idle-timeout", "0.2", "--connection-max-age", "0.3", "--connection-age-grace", "0.1")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("accept-wait") / "models"
    models.save(models.identity(DType.INT64, [-1]), root, "echo")
    return root


@pytest.fixture
def serve(repository: Path, cache_dir: Path, tmp_path: Path) -> Callable[..., Daemon]:
    """A daemon with these flags, whose temporary folders are in ``tmp_path``."""
    flags = ("--cache-dir", str(cache_dir), "--preflight", "off")
    return lambda *more: Daemon(repository, *flags, *more, environment={"TMPDIR": str(tmp_path)})


def sockets(tmp_path: Path) -> list[Path]:
    """Those that have a name: only workers know each other by names."""
    return list(tmp_path.glob("inferd-*/grpc"))


def probes(daemon: Daemon, at_least: int) -> Series:
    """The series, once so many have come."""
    until(lambda: scrape(daemon).total(PROBES) >= at_least, PATIENCE, daemon.log)
    return scrape(daemon)


@pytest.mark.parametrize("flags", [(), NARROW, BRIEF], ids=["by default", "within narrow limits", "renewed often"])
def test_probes_are_no_requests_and_take_no_clients_place(
    serve: Callable[..., Daemon], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    with serve(*flags) as daemon:
        assert sockets(tmp_path) == []
        probes(daemon, 2)

        async def ask() -> None:
            async with connect(daemon.grpc) as channel:
                infer = method(channel, "ModelInfer")
                for number in range(3):
                    await infer(echo([number]), wait_for_ready=True)

        asyncio.run(ask())
        series = probes(daemon, 4)
        assert series.by("inferd_requests_total", "model", "outcome") == {("echo", "ok"): 3}
        assert series.total("inferd_open_calls") == 0
        assert daemon.events("accept wait not measured") == []
        assert daemon.stop() == 0, daemon.log()
    assert list(tmp_path.glob("inferd-*")) == []


def test_channelz_shows_their_socket_next_to_the_port(serve: Callable[..., Daemon]) -> None:
    with serve() as daemon, grpc.insecure_channel(daemon.grpc) as channel:
        (server,) = channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest()).server
        names = [socket.name for socket in server.listen_socket]
        assert len(names) == 2
        assert sum("unix:" in name for name in names) == 1, names


def test_each_worker_has_its_own(serve: Callable[..., Daemon], tmp_path: Path) -> None:
    with serve("--workers", "2") as daemon:
        assert sockets(tmp_path) == []
        probes(daemon, 4)
        assert daemon.stop() == 0, daemon.log()
    assert list(tmp_path.glob("inferd-*")) == []
