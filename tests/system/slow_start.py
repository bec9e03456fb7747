"""A daemon that stays in start-up: one of its models takes minutes to warm up."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inferd.tensors import DType
from tests import models
from tests.system.daemon import Daemon


@dataclass(frozen=True, slots=True)
class Starting:
    """The daemon and its addresses, which it logs only once it is ready."""

    daemon: Daemon
    grpc: str
    metrics: str


@contextmanager
def starting(repository: Path, cache_dir: Path, *flags: str) -> Iterator[Starting]:
    """Its model `echo` is loaded already, its model `slow` is not; it is killed at the end if it still runs."""
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")
    models.save(models.slow(200), repository, "slow", settings="[warmup]\nruns = 1000")
    grpc, metrics = _free(), _free()
    addresses = ("--grpc-bind", grpc, "--metrics-bind", metrics)
    daemon = Daemon(repository, "--cache-dir", str(cache_dir), *addresses, *flags)
    try:
        daemon.wait_for("model ready")
        yield Starting(daemon, grpc, metrics)
    finally:
        if daemon.process.poll() is None:
            daemon.kill()


def _free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"
