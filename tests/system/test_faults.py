"""Faults around the real daemon: it stays up, reports the true state of each model, answers every request once, and
recovers.

Each fault, and the test that shows it here or, where a device has to be made to fail, at the engine's seam:

- a run that never ends: test_a_model_that_hangs_for_ever_...; test_monitor.py's test_a_model_that_can_run_nothing_...
- a run that raises: test_a_model_whose_runs_raise_...
- a lost device: test_lost_device.py; test_monitor.py, "devices that are lost"
- a corrupt blob in the cache: test_a_blob_that_was_spoilt_...
- a full disk: test_a_full_disk_costs_the_cache_..., test_a_log_that_can_not_be_written_...
- a model that can't be read: test_models_that_can_not_be_read_...
- a killed child: test_a_child_that_tries_a_model_...; test_tuner.py's test_a_process_that_measures_...
- SIGKILL while the cache is written: test_a_daemon_killed_while_it_writes_a_blob_...
- a wall clock that jumps: test_a_wall_clock_that_jumps_...; test_clocks.py
"""

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from inferd._pb import health_pb2
from inferd._pb import open_inference_pb2 as pb
from inferd.atomic_file import UNFINISHED
from inferd.engine.runtime import ov
from inferd.tensors import DType
from tests import models
from tests.engine import models as small
from tests.system import echo_models, wall_clock
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.wire import OK, by_outcome, connect, counts, echo, method, outcome, request, steps

pytestmark = pytest.mark.system

FOR_EVER = 16_000_000
"""Steps that take an hour; the loop they are is one node, which no cancel ends."""

Status = health_pb2.HealthCheckResponse


def serial(infer_requests: int) -> str:
    return echo_models.serial(16, infer_requests).replace("[queue]", "hang_timeout = 1.0\n[queue]")


def watch(channel: grpc.aio.Channel, service: str) -> Any:
    return channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=Status.FromString,
    )(health_pb2.HealthCheckRequest(service=service))


def answers(daemon: Daemon, model: str = "echo") -> bool:
    async def ask() -> bool:
        async with connect(daemon.grpc) as channel:
            answer = await method(channel, "ModelInfer")(
                request(model, {"x": np.array([7, -3], np.int64)}), wait_for_ready=True, timeout=60
            )
            return bool(answer.raw_output_contents[0] == np.array([7, -3], np.int64).tobytes())

    return asyncio.run(ask())


async def until_running(daemon: Daemon, model: str) -> None:
    """Until an infer request of ``model`` is in use."""
    series = re.compile(rf'^inferd_infer_requests_busy\{{[^}}]*model="{model}"[^}}]*\}} [1-9]', re.MULTILINE)
    while not series.search((await asyncio.to_thread(daemon.get, "/metrics"))[1]):  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.05)


# -- runs that never end ---------------------------------------------------------------


@pytest.fixture
def hanging(tmp_path: Path, cache_dir: Path) -> Iterator[Daemon]:
    """`one` and `three` hang for ever on request, on as many infer requests as their names say; `echo` never does."""
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    models.save(echo_models.steps(), tmp_path, "one", settings=serial(1))
    models.save(echo_models.steps(), tmp_path, "three", settings=serial(3))
    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--drain-timeout", "2") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def test_a_model_that_hangs_for_ever_is_not_ready_then_ready_again_and_no_other_model_notices(
    hanging: Daemon, figure: Callable[[str], None]
) -> None:
    async def story() -> tuple[list[int], list[tuple[StatusCode, str]], dict[str, float], int]:
        async with connect(hanging.grpc) as channel:
            infer, ready = method(channel, "ModelInfer"), method(channel, "ModelReady")
            health = watch(channel, "one/1")
            seen = [(await health.read()).status]
            echoed, stop = 0, asyncio.Event()
            at: dict[str, float] = {}

            async def follow() -> None:
                for what in ("not serving", "serving again"):
                    seen.append((await health.read()).status)
                    at[what] = time.monotonic()

            following = asyncio.create_task(follow())

            async def others() -> None:
                nonlocal echoed
                while not stop.is_set():
                    await infer(echo([1, 2]))
                    echoed += 1

            neighbour = asyncio.create_task(others())
            begun = time.monotonic()
            hung = infer(steps(FOR_EVER, model="one"))
            await until_running(hanging, "one")  # calls of one channel may overtake each other
            waiting = [infer(steps(3, model="one")) for _ in range(4)]
            ended = [await outcome(hung)]
            took = {"answered": time.monotonic() - begun}
            ended += [await outcome(call) for call in waiting]
            took["unavailable"] = time.monotonic() - begun
            refused = await outcome(infer(steps(3, model="one")))
            said = (await ready(pb.ModelReadyRequest(name="one"))).ready
            if refused[0] is not OK:  # else it was loaded again in no time
                ended.append(refused)
                assert not said or refused[0] is StatusCode.UNAVAILABLE
            await following
            took |= {what: moment - begun for what, moment in at.items()}
            ended.append(await outcome(infer(steps(3, model="one"))))
            stop.set()
            await neighbour
            return seen, ended, took, echoed

    seen, ended, took, echoed = asyncio.run(story())
    assert seen == [Status.SERVING, Status.NOT_SERVING, Status.SERVING]
    (code, sentence), *unavailable, last = ended
    assert code is StatusCode.INTERNAL
    assert "did not end within" in sentence
    assert {code for code, _ in unavailable} == {StatusCode.UNAVAILABLE}
    assert all("a run hung, and so did replacing its infer request" in sentence for _, sentence in unavailable)
    assert last[0] is OK
    assert echoed > 10
    counted = by_outcome(counts(hanging))
    assert (counted["internal"], counted["unavailable"], counted["ok"]) == (1, len(unavailable), echoed + 1)
    figure("a run that never ends, hang_timeout 1 s: " + ", ".join(f"{what} {s:.1f} s" for what, s in took.items()))


def test_a_request_that_hangs_is_answered_at_its_deadline_and_others_run_meanwhile(hanging: Daemon) -> None:
    async def story() -> list[StatusCode]:
        async with connect(hanging.grpc) as channel:
            infer = method(channel, "ModelInfer")
            hung = infer(steps(FOR_EVER, model="three", parameters={"timeout": 300_000}))
            codes = [await hung.code()]
            while not hanging.events("run hung"):
                codes.append(await infer(steps(3, model="three")).code())
            # Its slot is replaced or, where OpenVINO makes no other, all are; no request waits for that.
            return codes + [await infer(steps(3, model="three")).code() for _ in range(20)]

    first, *others = asyncio.run(story())
    assert first is StatusCode.DEADLINE_EXCEEDED
    assert set(others) == {OK}


def test_a_daemon_with_a_run_that_never_ends_stops_all_the_same(hanging: Daemon) -> None:
    async def story() -> tuple[int, tuple[StatusCode, str]]:
        async with connect(hanging.grpc) as channel:
            hung = method(channel, "ModelInfer")(steps(FOR_EVER, model="three", parameters={"timeout": 3_600_000_000}))
            await until_running(hanging, "three")
            stopping = asyncio.create_task(asyncio.to_thread(hanging.stop))
            return await stopping, await outcome(hung)

    status, (code, _) = asyncio.run(story())
    assert status == 0, hanging.log()
    assert code in (StatusCode.UNAVAILABLE, StatusCode.INTERNAL)
    assert hanging.events("stopped")


# -- runs that raise -------------------------------------------------------------------


def test_a_model_whose_runs_raise_is_ready_and_answers_each_request_with_what_became_of_it(
    tmp_path: Path, cache_dir: Path
) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    models.save(small.broadcasting(), tmp_path, "m", settings="[warmup]\nruns = 0")

    def asked(to: list[int]) -> pb.ModelInferRequest:
        return request("m", {"x": np.arange(4, dtype=np.float32), "to": np.array(to, np.int64)})

    async def story() -> tuple[list[StatusCode], list[StatusCode], int, bool]:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            health = watch(channel, "m")
            status = (await health.read()).status
            bad, good = [infer(asked([2, 3])) for _ in range(20)], [infer(asked([2, 4])) for _ in range(20)]
            codes = [await call.code() for call in bad], [await call.code() for call in good]
            ready = (await method(channel, "ModelReady")(pb.ModelReadyRequest(name="m"))).ready
            return *codes, status, ready

    with Daemon(tmp_path, "--cache-dir", str(cache_dir)) as daemon:
        bad, good, status, ready = asyncio.run(story())
        assert (set(bad), set(good)) == ({StatusCode.INTERNAL}, {OK})
        assert (status, ready) == (Status.SERVING, True)
        assert answers(daemon)
        assert by_outcome(counts(daemon)) == {"internal": 20, "ok": 21}
        assert not daemon.events("model failed")
    assert daemon.stop() == 0, daemon.log()


# -- children that are killed ----------------------------------------------------------


def children(process: int) -> dict[int, str]:
    """Processes below ``process`` that have not ended, and their command lines."""
    found = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):  # a thread, or a child, that has ended meanwhile
            for child in (task / "children").read_text().split():
                found[int(child)] = command_of(int(child))
    return found


def command_of(process: int) -> str:
    """Its command line, "" for one that has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def ready(daemon: Daemon) -> list[str]:
    """Models that were brought into service, one after the other."""
    return [event["model"] for event in daemon.events("model ready")]


async def killed(daemon: Daemon, command: str) -> int:
    """Kill the first child of the daemon's whose command line has ``command`` in it, as soon as there is one."""
    while not (found := [child for child, line in children(daemon.process.pid).items() if command in line]):
        assert daemon.process.poll() is None, daemon.log()
        await asyncio.sleep(0)
    os.kill(found[0], signal.SIGKILL)
    return found[0]


def test_a_child_that_tries_a_model_and_is_killed_fails_that_load_and_is_followed_by_another(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "models"
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")

    async def story() -> list[int]:
        async with connect(daemon.grpc) as channel:
            first = method(channel, "RepositoryModelLoad")(pb.RepositoryModelLoadRequest(model_name="heavy"))
            children = [await killed(daemon, "preflight_process")]
            code, sentence = await outcome(first)
            assert code is StatusCode.UNAVAILABLE
            assert "the preflight process was killed (SIGKILL)" in sentence
            index = await method(channel, "RepositoryIndex")(pb.RepositoryIndexRequest())
            (heavy,) = [entry for entry in index.models if entry.name == "heavy"]
            assert heavy.state == "UNAVAILABLE"
            assert heavy.reason.endswith("possibly because memory ran out; it will be retried")
            assert await method(channel, "ModelInfer")(echo([1])).code() is OK
            # The load is repeated with another child, and then another, until it succeeds, without an operator.
            children.append(await killed(daemon, "preflight_process"))
            await asyncio.to_thread(until, lambda: "heavy" in ready(daemon), 60, daemon.log)
            return children

    flags = ("--cache-dir", str(tmp_path / "cache"), "--preflight", "on", "--repository-control")
    with Daemon(repository, *flags) as daemon:
        models.save(weighty(4), repository, "heavy")
        gone = asyncio.run(asyncio.wait_for(story(), 120))
        assert [e["seconds"] for e in daemon.events("model load retry scheduled")] == [1.0, 2.0]
        assert children(daemon.process.pid).keys().isdisjoint(gone)
        assert answers(daemon)
        assert by_outcome(counts(daemon)) == {"ok": 2}
    assert daemon.stop() == 0, daemon.log()


def test_a_model_whose_child_is_killed_at_the_start_comes_by_itself_and_delays_no_other(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    models.save(weighty(4), repository, "heavy")
    daemon = Daemon(repository, "--cache-dir", str(tmp_path / "cache"), "--preflight", "on")
    asyncio.run(killed(daemon, "preflight_process"))
    with daemon:
        assert daemon.wait_for("model load retry scheduled")["model"] == "heavy"
        assert daemon.wait_for("model ready")["model"] == "heavy"
    assert daemon.stop() == 0, daemon.log()


def test_a_daemon_that_waits_to_load_a_model_again_ends_without_doing_so(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    models.save(weighty(4), repository, "heavy")
    daemon = Daemon(repository, "--cache-dir", str(tmp_path / "cache"), "--preflight", "on")

    def told(times: int) -> bool:
        return len(daemon.events("model load retry scheduled")) == times

    for times in (1, 2, 3):
        asyncio.run(killed(daemon, "preflight_process"))
        until(partial(told, times), 60, daemon.log)
    assert daemon.stop() == 0, daemon.log()
    # Four seconds later it would have.
    assert len(daemon.events("preflight failed")) == 3
    assert daemon.events("model ready") == []


# -- clocks ----------------------------------------------------------------------------

DAY = 86_400


@pytest.mark.skipif(bool(wall_clock.MISSING), reason=wall_clock.MISSING)
def test_a_wall_clock_that_jumps_changes_no_deadline_no_wait_and_no_health(tmp_path: Path, cache_dir: Path) -> None:
    repository, clock = tmp_path / "models", wall_clock.WallClock(tmp_path)
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")
    models.save(echo_models.steps(50), repository, "steps", settings=serial(1).replace("1.0", "600.0"))

    async def story() -> dict[str, list[StatusCode]]:
        found: dict[str, list[StatusCode]] = {}
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            health = watch(channel, "steps")
            assert (await health.read()).status == Status.SERVING
            for where, seconds in (("ahead", 400 * DAY), ("behind", -400 * DAY), ("back", 0)):
                # One runs and is cut off, those behind it wait, all while the clock jumps.
                long = infer(steps(4000, parameters={"timeout": 1_000_000}))
                waiting = [infer(steps(2, parameters={"timeout": 300_000_000})) for _ in range(4)]
                before = await infer(echo([1])).code()
                clock.jump(seconds)
                found[where] = [await call.code() for call in (long, *waiting, infer(echo([1])))] + [before]
            assert (await method(channel, "ModelReady")(pb.ModelReadyRequest(name="steps"))).ready
        return found

    flags = ("--cache-dir", str(cache_dir), "--probe-interval", "0.2")
    with Daemon(repository, *flags, environment=clock.environment) as daemon:
        found = asyncio.run(story())
        assert set(map(tuple, found.values())) == {(StatusCode.DEADLINE_EXCEEDED, *[OK] * 6)}
        assert by_outcome(counts(daemon)) == {"deadline": 3, "ok": 18}
        assert not daemon.events("model failed")
        assert not daemon.events("run hung")
        # It did see the clock jump.
        clock.jump(400 * DAY)
    assert daemon.stop() == 0, daemon.log()
    [ready], [stopped] = daemon.events("ready"), daemon.events("stopped")
    assert int(stopped["timestamp"][:4]) > int(ready["timestamp"][:4])


# -- the disk --------------------------------------------------------------------------


def weighty(megabytes: int) -> "ov.Model":
    """``x`` -> ``x``, INT64 [-1], next to weights that no output of interest needs."""
    op = ov.opset13
    x = op.parameter(ov.PartialShape([-1]), ov.Type.i64)
    x.output(0).set_names({"x"})
    side = op.parameter(ov.PartialShape([1, 1024]), ov.Type.f32)
    side.output(0).set_names({"side"})
    weights = np.random.default_rng(0).standard_normal((1024, megabytes * 256)).astype(np.float32)
    product = op.reduce_sum(op.matmul(side, op.constant(weights), False, False), op.constant([0, 1]), False)
    product.output(0).set_names({"sum"})
    return ov.Model([op.result(x), op.result(product)], [x, side], "weighty")


def blobs(cache: Path) -> list[Path]:
    """The compiled models in ``cache``, without the marks of models that were tried."""
    return [file for file in cache.rglob("*") if file.is_file() and file.stat().st_size > 100]


def test_a_damaged_blob_is_deleted_and_made_again(tmp_path: Path) -> None:
    repository, cache = tmp_path / "models", tmp_path / "cache"
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")
    with Daemon(repository, "--cache-dir", str(cache)) as daemon:
        assert answers(daemon)
    for blob in blobs(cache):
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 0xFF
        blob.write_bytes(content)

    with Daemon(repository, "--cache-dir", str(cache)) as daemon:
        assert answers(daemon)
        assert daemon.events("damaged cached blob discarded")
        assert not daemon.events("model ready")[0]["from_cache"]
    with Daemon(repository, "--cache-dir", str(cache)) as daemon:
        assert answers(daemon)
        assert daemon.events("model ready")[0]["from_cache"]
    assert daemon.stop() == 0, daemon.log()


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit, of util-linux, is not installed")
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    repository, cache = tmp_path / "models", tmp_path / "cache"
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")
    # No file may grow beyond a few bytes, as on a disk that is full.
    with Daemon(repository, "--cache-dir", str(cache), under=("prlimit", "--fsize=16")) as daemon:
        assert answers(daemon)
        assert daemon.events("cache not written")
    assert daemon.stop() == 0, daemon.log()
    assert blobs(cache) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_log_that_can_not_be_written_is_lost_and_nothing_else_is(tmp_path: Path, cache_dir: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    # The reader of the log exits at "ready": from then on no line can be written.
    script = """exec "$@" 2> >(exec sed -u '/"event": "ready"/q' >&2)"""
    flags = ("--cache-dir", str(cache_dir), "--request-log", "all")
    with Daemon(tmp_path, *flags, under=("bash", "-c", script, "log")) as daemon:

        async def ask() -> list[StatusCode]:
            async with connect(daemon.grpc) as channel:
                return [await method(channel, "ModelInfer")(echo([n])).code() for n in range(50)]

        assert asyncio.run(ask()) == [OK] * 50
        assert by_outcome(counts(daemon)) == {"ok": 50}
    assert daemon.stop() == 0, daemon.log()
    assert not daemon.events("stopped")


def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path, cache_dir: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    # From "ready" on the pipe is open and not read, as long as the daemon lives.
    script = """exec "$@" 2> >(sed -u '/"event": "ready"/q' >&2; exec tail --pid=$$ -f /dev/null)"""
    flags = ("--cache-dir", str(cache_dir), "--request-log", "all")
    with Daemon(tmp_path, *flags, under=("bash", "-c", script, "log")) as daemon:

        async def ask() -> list[StatusCode]:
            async with connect(daemon.grpc) as channel:
                return [await method(channel, "ModelInfer")(echo([n])).code() for n in range(4000)]

        assert asyncio.run(ask()) == [OK] * 4000
        assert by_outcome(counts(daemon)) == {"ok": 4000}
        assert daemon.get("/readyz")[0] == 200
        (lost,) = (
            float(line.split()[1])
            for line in daemon.get("/metrics")[1].splitlines()
            if line.startswith("inferd_log_lines_lost_total ")
        )
        # A line is some 400 bytes: 64 KiB fit into the pipe, 1 MiB waits.
        assert 500 < lost < 4000
    assert daemon.stop() == 0
    assert not daemon.events("stopped")


def test_a_daemon_killed_while_it_writes_a_blob_leaves_nothing_that_the_next_one_trips_over(tmp_path: Path) -> None:
    repository, cache = tmp_path / "models", tmp_path / "cache"
    models.save(weighty(64), repository, "heavy")
    cache.mkdir()
    daemon = Daemon(repository, "--cache-dir", str(cache), "--preflight", "off")
    try:
        while not (torn := list(cache.rglob(f"*{UNFINISHED}"))):
            assert daemon.process.poll() is None, daemon.log()
    finally:
        daemon.kill()
    assert torn

    for from_cache in (False, True):
        with Daemon(repository, "--cache-dir", str(cache), "--preflight", "off") as daemon:
            assert daemon.events("model ready")[0]["from_cache"] is from_cache
        assert daemon.stop() == 0, daemon.log()


# -- models that can't be read ---------------------------------------------------------


def test_models_that_can_not_be_read_say_why_and_are_served_once_they_can(tmp_path: Path, cache_dir: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "folder")
    models.save(weighty(1), tmp_path, "truncated")
    graph = tmp_path / "folder" / "1" / "model.xml"
    good_graph = graph.read_bytes()
    graph.unlink()
    graph.mkdir()
    weights = tmp_path / "truncated" / "1" / "model.bin"
    good_weights = weights.read_bytes()
    weights.write_bytes(good_weights[:1000])

    async def look() -> tuple[dict[str, str], list[StatusCode]]:
        async with connect(daemon.grpc) as channel:
            index = await method(channel, "RepositoryIndex")(pb.RepositoryIndexRequest())
            infer = method(channel, "ModelInfer")
            asked = [request(name, {"x": np.array([1], np.int64)}) for name in ("folder", "truncated")]
            return {m.name: m.reason for m in index.models if m.state != "READY"}, [
                await infer(each).code() for each in asked
            ]

    flags = ("--cache-dir", str(cache_dir), "--preflight", "on", "--repository-control")
    with Daemon(tmp_path, *flags) as daemon:
        reasons, codes = asyncio.run(look())
        assert set(reasons) == {"folder", "truncated"}
        assert all(reasons.values())
        assert str(tmp_path) not in "".join(reasons.values())
        assert codes == [StatusCode.UNAVAILABLE] * 2
        assert answers(daemon)

        graph.rmdir()
        graph.write_bytes(good_graph)
        weights.write_bytes(good_weights)

        async def load() -> None:
            async with connect(daemon.grpc) as channel:
                for name in ("folder", "truncated"):
                    await method(channel, "RepositoryModelLoad")(pb.RepositoryModelLoadRequest(model_name=name))

        asyncio.run(load())
        assert answers(daemon, "folder")
        assert asyncio.run(look())[0] == {}
    assert daemon.stop() == 0, daemon.log()
