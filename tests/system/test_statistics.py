"""ModelStatistics of one version, of a model and of all, by one process and by several."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests import models
from tests.system.daemon import Daemon
from tests.system.series import scrape
from tests.system.wire import OK, connect, echo, method

pytestmark = pytest.mark.system

CONNECTIONS = 16
"""Each with a request of its own, so that with two workers both have had some but for one time in 32,768."""


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    root = tmp_path_factory.mktemp("repository")
    for name, version in (("echo", 1), ("echo", 2), ("other", 1)):
        settings = '[versions]\npolicy = "all"\n' if name == "echo" else ""
        models.save(models.identity(DType.INT64, [-1]), root, name, version, settings)
    flags = ("--workers", str(request.param), "--preflight", "off", "--cache-max-bytes", "0")
    with Daemon(root, "--request-log", "off", *flags) as daemon:
        asyncio.run(serve(daemon))
        yield daemon


async def serve(daemon: Daemon) -> None:
    """Ask each version of ``echo`` once on each of many connections."""
    for _ in range(CONNECTIONS):
        async with connect(daemon.grpc) as channel:
            for version in ("1", "2"):
                assert await method(channel, "ModelInfer")(echo([1], version=version)).code() is OK


def statistics(daemon: Daemon, name: str = "", version: str = "") -> Any:
    """Requests answered well, by name and version; or the code of a refusal."""

    async def ask() -> Any:
        async with connect(daemon.grpc) as channel:
            call = method(channel, "ModelStatistics")(pb.ModelStatisticsRequest(name=name, version=version))
            if (code := await call.code()) is not OK:
                return code
            return {(s.name, s.version): s.inference_stats.success.count for s in (await call).model_stats}

    return asyncio.run(ask())


def test_a_name_alone_gives_all_versions_of_the_model(daemon: Daemon) -> None:
    assert statistics(daemon, "echo") == {("echo", "1"): CONNECTIONS, ("echo", "2"): CONNECTIONS}
    assert statistics(daemon, "other") == {("other", "1"): 0}


def test_a_version_gives_that_one(daemon: Daemon) -> None:
    assert statistics(daemon, "echo", "1") == {("echo", "1"): CONNECTIONS}


def test_neither_gives_all_versions_of_all_models(daemon: Daemon) -> None:
    assert statistics(daemon) == statistics(daemon, "echo") | statistics(daemon, "other")


@pytest.mark.parametrize(
    ("name", "version", "code"),
    [
        ("nothing", "", StatusCode.NOT_FOUND),
        ("nothing", "1", StatusCode.NOT_FOUND),
        ("echo", "3", StatusCode.NOT_FOUND),
        ("", "1", StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_is_not_there_is_not_found(daemon: Daemon, name: str, version: str, code: StatusCode) -> None:
    assert statistics(daemon, name, version) is code


def test_they_are_what_the_metrics_count(daemon: Daemon) -> None:
    counted = scrape(daemon).by("inferd_request_duration_seconds_count", "model", "version")
    assert counted == {key: number for key, number in statistics(daemon).items() if number}
