"""Counters survive what they count: all that clients saw while models came and went is in the next scrape."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests import models
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.series import Series, scrape
from tests.system.test_counting import OUTCOMES
from tests.system.wire import OK, connect, echo, method, outcome

pytestmark = pytest.mark.system

PATIENCE = 60.0

NAMES = ("one", "two", "three")
CLIENTS = 6
ROUNDS = 8
"""Times that each model is unloaded, loaded and given a new version."""

TOTAL, ANSWERED = "inferd_requests_total", "inferd_request_duration_seconds_count"


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path, cache_dir: Path) -> Iterator[Daemon]:
    for name in NAMES:
        models.save(models.identity(DType.INT64, [-1]), tmp_path, name)
    flags = ("--workers", str(request.param), "--repository-control", "--request-log", "off", "--preflight", "off")
    with Daemon(tmp_path, "--cache-dir", str(cache_dir), *flags, "--triton-metrics") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


async def keep_asking(target: str, name: str, over: asyncio.Event, seen: Counter[tuple[str, str]]) -> None:
    """One client: what it saw, by model and outcome. A new connection now and then, so that each worker has some."""
    while not over.is_set():
        async with connect(target) as channel:
            infer = method(channel, "ModelInfer")
            for _ in range(50):
                message = echo([1])
                message.model_name = name
                seen[name, OUTCOMES[await infer(message).code()]] += 1
                if over.is_set():
                    return


async def churn(channel: Any, repository: Path, name: str) -> None:
    """Unload ``name``, load it, and have the next version take its place, again and again."""
    for turn in range(ROUNDS):
        for what in ("Unload", "Load"):
            asked = getattr(pb, f"RepositoryModel{what}Request")(model_name=name)
            assert await outcome(method(channel, f"RepositoryModel{what}")(asked)) == (OK, "")
        models.save(models.identity(DType.INT64, [-1]), repository, name, turn + 2)
        loaded = method(channel, "RepositoryModelLoad")(pb.RepositoryModelLoadRequest(model_name=name))
        assert await outcome(loaded) == (OK, "")


def by_model(series: Series) -> Counter[tuple[str, str]]:
    return Counter({(m, o): int(n) for (m, o), n in series.by(TOTAL, "model", "outcome").items()})


def test_all_that_clients_saw_while_models_came_and_went_is_in_one_scrape_at_the_end(
    daemon: Daemon, tmp_path: Path
) -> None:
    seen: Counter[tuple[str, str]] = Counter()

    async def run() -> None:
        over = asyncio.Event()
        async with connect(daemon.grpc) as channel:
            clients = [
                asyncio.create_task(keep_asking(daemon.grpc, NAMES[at % len(NAMES)], over, seen))
                for at in range(CLIENTS)
            ]
            await asyncio.gather(*(churn(channel, tmp_path, name) for name in NAMES))
            over.set()
            await asyncio.gather(*clients)

    asyncio.run(run())
    # Answers come first, and are counted next.
    until(lambda: by_model(scrape(daemon)) == seen, PATIENCE, lambda: f"{by_model(scrape(daemon))} is not {seen}")
    end = scrape(daemon)
    assert {outcome for _, outcome in seen} >= {"ok", "unavailable"}
    assert by_model(end) == seen
    # All counters tell the same: each version's histogram and statistics have what its requests came to.
    answered = end.by(TOTAL, "model", "version")
    for (model, version), number in end.by(ANSWERED, "model", "version").items():
        ok = end.total(TOTAL, model=model, version=version, outcome="ok")
        assert number == ok == end.total("nv_inference_request_success", model=model, version=version)
        assert answered[model, version] >= number
    # Gauges of the current state exist only for versions that are loaded.
    newest = {(name, str(ROUNDS + 1)) for name in NAMES}
    assert {key for key, _ in end.by("inferd_model_ready", "model", "version").items()} == newest
    assert {key for key, _ in end.by("inferd_infer_requests", "model", "version").items()} == newest
    # And once more, as Prometheus would see it.
    assert by_model(scrape(daemon)) == seen
