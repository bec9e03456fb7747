"""Several workers behind one port: they serve, count, reload and drain as one daemon, and a dead one is replaced."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from inferd._pb import open_inference_pb2 as pb
from inferd.config.daemon import WORKER_VARIABLE
from inferd.tensors import DType
from inferd.workers.report_socket import query
from inferd.workers.worker_identity import WorkerIdentity
from tests import models as saving
from tests.engine import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.series import Series, scrape
from tests.system.wire import OK, connect, echo, method, request, steps

pytestmark = pytest.mark.system

WORKERS = 2
PATIENCE = 60.0
CONNECTIONS = 200
"""Bounds how many are opened until each worker has one: one in 2**200 runs would not do."""
ONES = np.ones((1, 2), np.float32)


def put(root: Path, name: str, factor: float) -> None:
    """Version 1 of ``name`` multiplies by ``factor`` from now on; as deployments do it, moved into place."""
    made = root.parent / "made"
    models.save(models.scaled(factor, [1, 2]), made)
    folder = root / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    for file in made.iterdir():
        file.replace(folder / file.name)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workers") / "models"
    saving.save(saving.identity(DType.INT64, [-1]), root, "echo")
    saving.save(echo_models.steps(), root, "steps", settings=echo_models.serial(64))
    put(root, "scaled", 1)
    put(root, "leaving", 1)
    return root


@pytest.fixture(scope="module")
def daemon(repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    # These models are our own: trying each in a process of its own first takes longer than all the rest.
    flags = ("--workers", str(WORKERS), "--cache-dir", str(cache_dir), "--repository-control", "--preflight", "off")
    with Daemon(repository, *flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def pids(daemon: Daemon) -> dict[int, int]:
    """The process that is each worker now, or was last."""
    return {event["worker"]: event["pid"] for event in daemon.events("worker started")}


def identity(pid: int) -> WorkerIdentity:
    """Where the worker with ``pid`` has its sockets."""
    environment = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
    )
    found = WorkerIdentity.of({WORKER_VARIABLE: environment[WORKER_VARIABLE]})
    assert found is not None
    return found


def says(pid: int, word: str = "metrics") -> str:
    return query(identity(pid).socket("reports"), word, PATIENCE).decode()


def says_merged(daemon: Daemon) -> str:
    """The metrics, as Prometheus asks for them."""
    connection = http.client.HTTPConnection(daemon.metrics, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
    finally:
        connection.close()


def counted(exposed: str) -> Counter[tuple[str, str]]:
    """Requests by model and outcome."""
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(exposed):
        for sample in family.samples:
            if sample.name == "inferd_requests_total":
                found[sample.labels["model"], sample.labels["outcome"]] += int(sample.value)
    return found


def ready(series: Series) -> float:
    return series.total("inferd_workers_ready")


async def asked(daemon: Daemon, name: str) -> float | StatusCode:
    """By what ``name`` multiplies, or how it is refused; on a new connection."""
    async with connect(daemon.grpc) as channel:
        call = method(channel, "ModelInfer")(request(name, {"x": ONES}))
        if (code := await call.code()) is not OK:
            return code
        return float(np.frombuffer((await call).raw_output_contents[0], np.float32)[0])


async def asked_of_all(daemon: Daemon, name: str) -> tuple[set[Any], int]:
    """What new connections are answered until each worker has had one of them, and how many these were."""
    before = [counted(says(pid)).total() for pid in pids(daemon).values()]
    seen = set()
    for number in range(1, CONNECTIONS):
        seen.add(await asked(daemon, name))
        now = [counted(says(pid)).total() for pid in pids(daemon).values()]
        if all(b > a for a, b in zip(before, now, strict=True)):
            return seen, number
    raise AssertionError(f"not every worker was asked\n{daemon.log()}")


def test_each_runs_on_cpus_of_its_own_and_all_are_ready(daemon: Daemon) -> None:
    sets = [os.sched_getaffinity(pid) for pid in pids(daemon).values()]
    assert len(sets) == WORKERS
    assert all(one <= os.sched_getaffinity(0) for one in sets)
    if len(os.sched_getaffinity(0)) >= WORKERS:
        assert sum(map(len, sets)) == len(frozenset().union(*sets))
    assert daemon.get("/readyz") == (200, "ready\n")
    assert daemon.get("/healthz")[0] == 200

    def live() -> Any:
        return json.loads(daemon.get("/status.json")[1])

    # It is read once a second.
    until(lambda: live()["phase"] == "ready", PATIENCE, daemon.log)
    assert live()["service"] == "inferd"
    assert {model["model"]: model["infer_requests"] for model in live()["models"]}["steps"] == WORKERS


def test_what_all_have_counted_is_what_the_clients_were_answered(daemon: Daemon) -> None:
    before = counted(says_merged(daemon))
    _, scaled = asyncio.run(asked_of_all(daemon, "scaled"))

    async def load() -> Counter[tuple[str, str]]:
        async def ask_on_one(number: int) -> Counter[tuple[str, str]]:
            mine: Counter[tuple[str, str]] = Counter()
            async with connect(daemon.grpc) as channel:
                infer = method(channel, "ModelInfer")
                for word in range(20):
                    wrong = (number + word) % 5 == 0
                    call = infer(request("echo", {"y": np.array([word])}) if wrong else echo([word]))
                    assert await call.code() is (StatusCode.INVALID_ARGUMENT if wrong else OK)
                    mine["echo", "invalid" if wrong else "ok"] += 1
            return mine

        return sum(await asyncio.gather(*map(ask_on_one, range(8))), Counter())

    tally = asyncio.run(load())
    tally["scaled", "ok"] = scaled
    merged = says_merged(daemon)
    parts = [counted(says(pid)) for pid in pids(daemon).values()]
    assert counted(merged) - before == tally
    assert sum(parts, Counter()) == counted(merged)
    assert all(part.total() for part in parts)
    # The histogram holds those answered well, and no label says which worker.
    series = scrape(daemon)
    assert series.total("inferd_request_duration_seconds_count", model="echo") == counted(merged)["echo", "ok"]
    assert not any(label == "worker" for _, labels in series.values for label, _ in labels)


def test_a_reload_reaches_every_worker(daemon: Daemon, repository: Path) -> None:
    put(repository, "scaled", 3)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("all workers reloaded", PATIENCE)
    assert asyncio.run(asked_of_all(daemon, "scaled"))[0] == {3.0}
    # Reloads of the daemon, not of its workers.
    assert scrape(daemon).total("inferd_reloads_total", result="ok") == 1


def test_load_and_unload_reach_every_worker(daemon: Daemon, repository: Path) -> None:
    async def tell(name: str, message: Any) -> StatusCode:
        async with connect(daemon.grpc) as channel:
            return await method(channel, name)(message).code()

    put(repository, "scaled", 5)
    assert asyncio.run(tell("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="scaled"))) is OK
    assert asyncio.run(asked_of_all(daemon, "scaled"))[0] == {5.0}
    assert asyncio.run(tell("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="leaving"))) is OK
    assert asyncio.run(asked_of_all(daemon, "leaving"))[0] == {StatusCode.UNAVAILABLE}
    unknown = pb.RepositoryModelLoadRequest(model_name="nothing")
    assert asyncio.run(tell("RepositoryModelLoad", unknown)) is StatusCode.NOT_FOUND


def test_one_that_is_killed_is_replaced_while_the_other_serves(daemon: Daemon) -> None:
    before, killed = counted(says_merged(daemon)), pids(daemon)
    os.kill(killed[1], signal.SIGKILL)
    until(lambda: daemon.events("worker died") != [], PATIENCE, daemon.log)

    async def meanwhile() -> int:
        """Asks until two serve again, on new connections: only what serves is found at the port."""
        answered = 0
        while ready(await asyncio.to_thread(scrape, daemon)) < WORKERS:
            assert await asked(daemon, "scaled") == 5.0
            assert (await asyncio.to_thread(daemon.get, "/readyz"))[0] == 200
            answered += 1
        return answered

    answered = asyncio.run(asyncio.wait_for(meanwhile(), PATIENCE))
    now = pids(daemon)
    assert now[1] != killed[1]
    assert now[0] == killed[0]
    # What the dead one had counted stays counted, as a counter that falls would be taken for a restart.
    assert counted(says_merged(daemon)) - before == Counter({("scaled", "ok"): answered} if answered else {})
    assert counted(says_merged(daemon)) >= before
    assert scrape(daemon).total("inferd_workers_replaced_total") == 1
    # It serves what the other serves, not what it would have found alone.
    assert asyncio.run(asked_of_all(daemon, "leaving"))[0] == {StatusCode.UNAVAILABLE}


def test_sigterm_drains_all_of_them_and_no_accepted_request_is_lost(daemon: Daemon) -> None:
    async def drain() -> list[Any]:
        channels = [connect(daemon.grpc) for _ in range(8)]
        try:
            calls = []
            for channel in channels:
                infer = method(channel, "ModelInfer")
                calls += [infer(steps(50)) for _ in range(3)]
                # What was sent before it on the same connection has been taken once this is answered.
                for _ in range(3):
                    await infer(echo([1]))
            daemon.process.send_signal(signal.SIGTERM)
            return [await call.code() for call in calls]
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    assert asyncio.run(drain()) == [OK] * 24
    assert daemon.process.wait(PATIENCE) == 0
    assert [event["status"] for event in daemon.events("worker ended")] == [0, 0]


def test_a_start_that_can_not_succeed_ends_the_daemon(tmp_path: Path, cache_dir: Path) -> None:
    with_port = Daemon(tmp_path / "none", "--workers", "2", "--cache-dir", str(cache_dir))
    assert with_port.process.wait(PATIENCE) == 3
    with_port.kill()
    assert len(with_port.events("worker started")) == 1


def test_workers_end_when_their_supervisor_is_gone(tmp_path: Path, cache_dir: Path) -> None:
    saving.save(saving.identity(DType.INT64, [-1]), tmp_path / "models", "echo")
    flags = ("--workers", "2", "--cache-dir", str(cache_dir), "--preflight", "off")
    with Daemon(tmp_path / "models", *flags) as orphaned:
        other = Daemon(tmp_path / "models", "--workers", "2", "--grpc-bind", orphaned.grpc)
        assert other.process.wait(PATIENCE) == 78
        other.kill()
        left = pids(orphaned).values()
        orphaned.process.kill()
        orphaned.process.wait()
        until(lambda: not any(map(running, left)), PATIENCE, lambda: subprocess.getoutput("ps -ef"))


@pytest.mark.parametrize("again", [False, True], ids=["in time", "at once"])
def test_a_worker_that_does_nothing_any_more_does_not_keep_the_daemon_from_ending(
    tmp_path: Path, cache_dir: Path, again: bool
) -> None:
    saving.save(saving.identity(DType.INT64, [-1]), tmp_path / "models", "echo")
    flags = ("--workers", "2", "--cache-dir", str(cache_dir), "--preflight", "off", "--drain-timeout", "0")
    with Daemon(tmp_path / "models", *flags) as daemon:
        workers = pids(daemon).values()
        os.kill(pids(daemon)[1], signal.SIGSTOP)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("draining")
        while again and daemon.process.poll() is None:
            # Signals close together count as one.
            daemon.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                daemon.process.wait(0.05)
        status = daemon.process.wait(PATIENCE)
        # Not before: that would tell it again.
        daemon.stop()
        assert status == (128 + signal.SIGTERM if again else 1)
        until(lambda: not any(map(running, workers)), PATIENCE, lambda: subprocess.getoutput("ps -ef"))
    assert bool(daemon.events("workers did not end in time")) is not again


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
