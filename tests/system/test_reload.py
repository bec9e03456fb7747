"""SIGHUP, and a watch on the repository: models come, change and go under load, and no request pays for it."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from tests.engine import models
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.wire import OK, connect, method, outcome, request

pytestmark = pytest.mark.system

ONES = np.ones((1, 2), np.float32)
SWAPS = 6
PATIENCE = 60.0


def put(root: Path, name: str, factor: float) -> None:
    """Version 1 of ``name`` multiplies by ``factor`` from now on; as deployments do it, moved into place."""
    made = root.parent / "made"
    models.save(models.scaled(factor, [1, 2]), made)
    folder = root / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    for file in made.iterdir():
        file.replace(folder / file.name)


def reloads(daemon: Daemon) -> Counter[str]:
    return Counter(event["event"] for event in (*daemon.events("reloaded"), *daemon.events("reloaded partially")))


def reload(daemon: Daemon) -> None:
    """Ask for a reload and wait for its end."""
    before = reloads(daemon).total()
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: reloads(daemon).total() > before, PATIENCE, daemon.log)


async def times(infer: Callable[[pb.ModelInferRequest], object], name: str) -> float | StatusCode:
    """By what ``name`` multiplies, or how it refuses."""
    call = infer(request(name, {"x": ONES}))
    if await call.code() is not OK:
        return await call.code()
    answer = await call
    return float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0])


async def asked(daemon: Daemon, *names: str) -> list[float | StatusCode]:
    async with connect(daemon.grpc) as channel:
        return [await times(method(channel, "ModelInfer"), name) for name in names]


async def reasons(daemon: Daemon) -> dict[str, str]:
    """What the repository index says of each model."""
    async with connect(daemon.grpc) as channel:
        index = await method(channel, "RepositoryIndex")(pb.RepositoryIndexRequest())
        return {model.name: model.reason for model in index.models}


async def loaded(daemon: Daemon, name: str) -> tuple[StatusCode, str]:
    async with connect(daemon.grpc) as channel:
        return await outcome(method(channel, "RepositoryModelLoad")(pb.RepositoryModelLoadRequest(model_name=name)))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for name in ("steady", "swapped", "leaving"):
        put(root, name, 1)
    return root


def test_sighup_takes_up_what_changed_while_requests_go_on(
    repository: Path, cache_dir: Path, figure: Callable[[str], None]
) -> None:
    with Daemon(repository, "--cache-dir", str(cache_dir), "--request-log", "failed") as daemon:

        async def load() -> Counter[tuple[str, float | StatusCode]]:
            seen: Counter[tuple[str, float | StatusCode]] = Counter()
            done = asyncio.Event()

            async def ask(name: str) -> None:
                async with connect(daemon.grpc) as channel:
                    infer = method(channel, "ModelInfer")
                    while not done.is_set():
                        seen[name, await times(infer, name)] += 1

            asking = [asyncio.create_task(ask(name)) for name in ("steady", "swapped") for _ in range(4)]
            for factor in range(2, 2 + SWAPS):
                put(repository, "swapped", factor)
                await asyncio.to_thread(reload, daemon)
                assert await asked(daemon, "swapped") == [factor]
            done.set()
            await asyncio.gather(*asking)
            return seen

        seen = asyncio.run(load())
        # The other model was not loaded again.
        loaded = Counter(event["model"] for event in daemon.events("model ready"))
        assert loaded["steady"] == loaded["leaving"] == 1
        assert loaded["swapped"] == 1 + SWAPS
        assert daemon.events("request") == []
    assert {name: {f for n, f in seen if n == name} for name in ("steady", "swapped")} == {
        "steady": {1.0},
        "swapped": {float(factor) for factor in range(1, 2 + SWAPS)},
    }
    figure(f"reload: {SWAPS} swaps under load, {seen.total()} requests, none failed")


def test_what_is_new_comes_and_what_is_gone_goes(repository: Path, cache_dir: Path, tmp_path: Path) -> None:
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon:
        put(repository, "new", 5)
        (repository / "leaving").rename(tmp_path / "left")
        reload(daemon)
        assert asyncio.run(asked(daemon, "new", "leaving", "steady")) == [5, StatusCode.NOT_FOUND, 1]
        assert 'inferd_model_ready{model="leaving"' not in daemon.get("/metrics")[1]
        assert 'inferd_reloads_total{result="ok"} 1.0' in daemon.get("/metrics")[1]


def test_what_fails_is_said_and_what_was_served_goes_on(repository: Path, cache_dir: Path) -> None:
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon:
        (repository / "steady" / "1" / "model.xml").write_text("not a model")
        (repository / "swapped" / "model.toml").write_text("no_such_key = 1")
        reload(daemon)
        assert asyncio.run(asked(daemon, "steady", "swapped")) == [1, 1]
        metrics = daemon.get("/metrics")[1]
        assert 'inferd_model_loads_total{model="steady",result="failed"} 1.0' in metrics
        assert 'inferd_model_loads_total{model="swapped",result="failed"} 1.0' in metrics
        failed = {event["model"]: event for event in daemon.events("model load failed")}
        assert {name: event["still_serving"] for name, event in failed.items()} == {"steady": [1], "swapped": [1]}
        assert 'inferd_reloads_total{result="failed"} 1.0' in metrics
        [event] = daemon.events("reloaded partially")
        assert (event["level"], event["not_served_as_on_disk"]) == ("warning", ["swapped", "steady"])
        index = asyncio.run(reasons(daemon))
        assert {name: why.partition(": ")[0] for name, why in index.items() if why} == dict.fromkeys(
            ("steady", "swapped"), "version on disk not served"
        )

        # Whole again, it is served, and nothing is said of it any more.
        put(repository, "steady", 2)
        (repository / "swapped" / "model.toml").unlink()
        reload(daemon)
        assert asyncio.run(asked(daemon, "steady", "swapped")) == [2, 1]
        assert set(asyncio.run(reasons(daemon)).values()) == {""}
        assert 'inferd_reloads_total{result="ok"} 1.0' in daemon.get("/metrics")[1]


def test_a_new_version_that_is_broken_is_said_with_the_one_that_serves_on(repository: Path, cache_dir: Path) -> None:
    with Daemon(repository, "--cache-dir", str(cache_dir), "--repository-control") as daemon:
        (repository / "steady" / "2").mkdir()
        (repository / "steady" / "2" / "model.xml").write_text("not a model")
        reload(daemon)
        assert asyncio.run(asked(daemon, "steady")) == [1]
        [event] = daemon.events("model load failed")
        assert (event["model"], event["version"], event["still_serving"]) == ("steady", 2, [1])
        assert daemon.events("reloaded partially")[0]["not_served_as_on_disk"] == ["steady"]
        assert 'inferd_reloads_total{result="failed"} 1.0' in daemon.get("/metrics")[1]
        # A client that loads it is told why.
        code, why = asyncio.run(loaded(daemon, "steady"))
        assert code is StatusCode.UNAVAILABLE
        assert why.startswith("model 'steady' version 2 failed to load: ")


def test_settings_that_can_change_do_and_the_others_say_so(repository: Path, cache_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "inferd.toml"
    file.write_text('request_log = "off"\n')
    with Daemon(repository, "--cache-dir", str(cache_dir), "--config", str(file)) as daemon:
        asyncio.run(asked(daemon, "steady"))
        file.write_text('request_log = "all"\nqueue_max_length = 7\n')
        reload(daemon)
        asyncio.run(asked(daemon, "steady"))
        assert daemon.wait_for("request")["model"] == "steady"
        assert len(daemon.events("request")) == 1
        waits = daemon.events("setting not applied; restart required")
        assert [event["setting"] for event in waits] == ["queue_max_length"]

        file.write_text('request_log = "sometimes"\n')
        reload(daemon)
        assert len(daemon.events("settings not reloaded")) == 1
        assert 'inferd_reloads_total{result="failed"} 1.0' in daemon.get("/metrics")[1]
        assert asyncio.run(asked(daemon, "steady")) == [1]


def test_a_watch_needs_no_signal(repository: Path, cache_dir: Path) -> None:
    with Daemon(repository, "--cache-dir", str(cache_dir), "--repository-poll-interval", "0.1") as daemon:
        put(repository, "swapped", 3)
        until(lambda: asyncio.run(asked(daemon, "swapped")) == [3], PATIENCE, daemon.log)
        assert asyncio.run(asked(daemon, "steady")) == [1]


def test_a_signal_while_models_load_is_no_end(repository: Path, cache_dir: Path) -> None:
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon:
        for _ in range(20):
            daemon.process.send_signal(signal.SIGHUP)
        reload(daemon)
        assert asyncio.run(asked(daemon, "steady")) == [1]
