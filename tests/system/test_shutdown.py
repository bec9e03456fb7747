"""SIGTERM: accepted requests are answered, clients and supervisors learn of it in time, and the exit code tells the
result."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from inferd._pb import health_pb2
from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.slow_start import starting
from tests.system.wire import OK, connect, echo, method, outcome, request, steps

pytestmark = pytest.mark.system

DRAINING = "the server is draining and takes no new requests"
Status = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echo_models.write(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def daemon(repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    with Daemon(repository, "--cache-dir", str(cache_dir), "--request-log", "all") as daemon:
        yield daemon


async def accepted(channel: grpc.aio.Channel, message: pb.ModelInferRequest) -> Any:
    """A call the server has taken, as it has answered what was sent after it on the same connection."""
    infer = method(channel, "ModelInfer")
    call = infer(message)
    for _ in range(3):
        await infer(echo([1]))
    return call


def ended_by_itself(daemon: Daemon) -> int:
    """The exit status of a daemon that was told to end; stopping it would tell it again."""
    daemon.process.wait(60)
    return daemon.stop()


def requests_logged(daemon: Daemon) -> dict[str, str]:
    """Outcome by request id of an ended daemon; each id was logged once, and no line is a traceback."""
    lines = [json.loads(line) for line in daemon.lines]
    assert [line for line in lines if "exception" in line] == []
    logged = [(line["id"], line["outcome"]) for line in lines if line["event"] == "request" and line["id"]]
    assert len(dict(logged)) == len(logged)
    return dict(logged)


# -- under load -------------------------------------------------------------------


class Load:
    """Clients that go on until they are turned away; what each request of theirs came to, by id.

    The streams are in threads, on grpc's synchronous client: the other one reports an error
    of its own where it happens to write to a stream that the server has just ended.
    """

    def __init__(self) -> None:
        self.ended: dict[str, StatusCode] = {}
        self.enough = threading.Event()
        self._numbers = count()

    def _request(self, kind: str) -> pb.ModelInferRequest:
        return steps(10, f"{kind}-{next(self._numbers)}", model="slots")

    def _end(self, name: str, code: StatusCode) -> None:
        assert name not in self.ended
        self.ended[name] = code
        if len(self.ended) >= 300:
            self.enough.set()

    async def unary(self, target: str) -> None:
        async with connect(target) as channel:
            infer = method(channel, "ModelInfer")
            code = OK
            while code is OK:
                message = self._request("unary")
                code = await infer(message).code()
                self._end(message.id, code)

    def stream(self, target: str) -> tuple[StatusCode, str]:
        """How the stream itself ended."""
        to_send: SimpleQueue[pb.ModelInferRequest | None] = SimpleQueue()
        asked: deque[str] = deque()

        def ask() -> None:
            message = self._request("stream")
            asked.append(message.id)
            to_send.put(message)

        with grpc.insecure_channel(target) as channel:
            for _ in range(3):
                ask()
            call = method(channel, "ModelStreamInfer")(iter(to_send.get, None))
            with suppress(grpc.RpcError):
                for answer in call:
                    assert answer.infer_response.id == asked.popleft()
                    self._end(answer.infer_response.id, StatusCode.UNAVAILABLE if answer.error_message else OK)
                    ask()
            to_send.put(None)
            return call.code(), call.details()


def test_under_load_every_accepted_request_is_answered(daemon: Daemon, figure: Callable[[str], None]) -> None:
    load = Load()

    async def run() -> list[tuple[StatusCode, str]]:
        unary = [asyncio.ensure_future(load.unary(daemon.grpc)) for _ in range(6)]
        streams = [asyncio.ensure_future(asyncio.to_thread(load.stream, daemon.grpc)) for _ in range(3)]
        await asyncio.to_thread(load.enough.wait)
        daemon.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*unary)
        return list(await asyncio.gather(*streams))

    streams = asyncio.run(run())
    ended = load.ended
    assert ended_by_itself(daemon) == 0
    assert {OK, StatusCode.UNAVAILABLE} <= set(ended.values())
    # gRPC itself cancels a call that comes once it accepts no more, and before its client has read that.
    assert set(ended.values()) <= {OK, StatusCode.UNAVAILABLE, StatusCode.CANCELLED}
    assert streams == [(StatusCode.UNAVAILABLE, DRAINING)] * 3

    # Accepted is what the server's own log says it ran; a request turned away may not even have reached it.
    logged = requests_logged(daemon)
    assert {name for name, how in logged.items() if how == "ok"} == {n for n, code in ended.items() if code is OK}
    turned_away = {name for name, how in logged.items() if how != "ok"}
    assert {logged[name] for name in turned_away} <= {"unavailable"}
    assert turned_away <= {name for name, code in ended.items() if code is StatusCode.UNAVAILABLE}
    accepted_ones = sum(how == "ok" for how in logged.values())
    figure(
        f"SIGTERM under load: {accepted_ones} accepted and answered, {len(ended) - accepted_ones} turned away, exit 0"
    )


# -- step by step -----------------------------------------------------------------


def test_while_accepted_work_finishes_everybody_is_told_that_the_server_drains(daemon: Daemon) -> None:
    async def drain() -> None:
        async with connect(daemon.grpc) as channel:
            infer, stream = method(channel, "ModelInfer"), method(channel, "ModelStreamInfer")
            check = channel.unary_unary("/grpc.health.v1.Health/Check", response_deserializer=Status.FromString)
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch", response_deserializer=Status.FromString)(b"")
            assert (await watch.read()).status == Status.SERVING
            streamed = stream()
            await streamed.write(steps(1, "streamed"))
            calls = [await accepted(channel, steps(2500, f"unary-{number}")) for number in range(3)]
            daemon.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == Status.NOT_SERVING
            assert (await check(b"")).status == Status.NOT_SERVING
            assert (await check(health_pb2.HealthCheckRequest(service="echo").SerializeToString())).status == (
                Status.NOT_SERVING
            )
            assert (await method(channel, "ServerLive")(b"")).live
            assert not (await method(channel, "ServerReady")(b"")).ready
            assert not (await method(channel, "ModelReady")(pb.ModelReadyRequest(name="echo"))).ready
            assert daemon.get("/readyz")[0] == 503
            assert daemon.get("/readyz")[1].startswith("draining\n")
            assert "\ninferd_ready 0.0\n" in daemon.get("/metrics")[1]
            assert await outcome(infer(echo([1], "refused"))) == (StatusCode.UNAVAILABLE, DRAINING)
            assert await outcome(stream()) == (StatusCode.UNAVAILABLE, DRAINING)
            assert not calls[-1].done()
            assert [await call.code() for call in calls] == [OK] * len(calls)
            assert (await streamed.read()).infer_response.id == "streamed"
            assert await outcome(streamed) == (StatusCode.UNAVAILABLE, DRAINING)
            assert await watch.code() is StatusCode.UNAVAILABLE

    asyncio.run(drain())
    assert ended_by_itself(daemon) == 0
    assert requests_logged(daemon) == {
        "streamed": "ok",
        "unary-0": "ok",
        "unary-1": "ok",
        "unary-2": "ok",
        "refused": "unavailable",
    }


def test_an_idle_stream_is_ended(daemon: Daemon) -> None:
    async def drain() -> tuple[StatusCode, str]:
        async with connect(daemon.grpc) as channel:
            call = method(channel, "ModelStreamInfer")()
            await call.write(echo([1]))
            await call.read()
            daemon.process.send_signal(signal.SIGTERM)
            return await outcome(call)

    assert asyncio.run(drain()) == (StatusCode.UNAVAILABLE, DRAINING)
    assert ended_by_itself(daemon) == 0


def test_what_the_drain_has_no_time_for_is_told_so(tmp_path: Path, cache_dir: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    models.save(models.slow(100), tmp_path, "slow")

    async def drain(daemon: Daemon) -> set[tuple[StatusCode, str]]:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            message = request("slow", {"x": np.zeros(1, np.float32)})
            calls = [infer(message) for _ in range(19)] + [await accepted(channel, message)]
            daemon.process.send_signal(signal.SIGTERM)
            return {await outcome(call) for call in calls}

    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--drain-timeout", "0") as daemon:
        seen = asyncio.run(drain(daemon))
        assert ended_by_itself(daemon) == 0
    assert (StatusCode.UNAVAILABLE, DRAINING) in seen
    assert seen <= {(StatusCode.UNAVAILABLE, DRAINING), (OK, "")}
    assert daemon.events("drain timed out; remaining requests answered UNAVAILABLE")


def test_two_signals_at_once_are_one_wish(daemon: Daemon) -> None:
    async def drain() -> StatusCode:
        async with connect(daemon.grpc) as channel:
            call = await accepted(channel, steps(1000))
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.send_signal(signal.SIGINT)
            return await call.code()

    assert asyncio.run(drain()) is OK
    assert ended_by_itself(daemon) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(daemon: Daemon, number: signal.Signals) -> None:
    async def hurry() -> None:
        async with connect(daemon.grpc) as channel:
            await accepted(channel, steps(20_000))
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for("draining")
            # Signals close together count as one, so it takes as many as it takes.
            while daemon.process.poll() is None:
                daemon.process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    daemon.process.wait(0.05)

    asyncio.run(hurry())
    assert ended_by_itself(daemon) == 128 + number
    assert daemon.events("second signal received; exiting at once")[0]["signal"] == number.name
    assert not daemon.events("stopped")


def test_a_load_that_goes_on_does_not_hold_up_the_end(tmp_path: Path, cache_dir: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--drain-timeout", "1") as daemon:
        models.save(models.slow(200), tmp_path, "slow", settings="[warmup]\nruns = 1000")
        daemon.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        while "slow 1: LOADING" not in daemon.get("/readyz")[1]:
            assert time.monotonic() < end, daemon.log()
        daemon.process.send_signal(signal.SIGTERM)
        assert ended_by_itself(daemon) == 0
    assert daemon.events("stopped")
    assert not [event for event in daemon.events("model ready") if event["model"] == "slow"]


# -- start-up ---------------------------------------------------------------------


def test_a_signal_during_start_up_ends_it_cleanly(tmp_path: Path, cache_dir: Path) -> None:
    with starting(tmp_path, cache_dir) as found:
        found.daemon.process.send_signal(signal.SIGTERM)
        assert ended_by_itself(found.daemon) == 0
        assert not found.daemon.events("ready")
        assert found.daemon.events("stopped")


def serve(*flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "inferd",
            "serve",
            "--grpc-bind",
            "127.0.0.1:0",
            "--metrics-bind",
            "127.0.0.1:0",
            *flags,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("grpc-bind", "grpc_bind: can't listen on {}: the address is in use or not this machine's"),
        ("metrics-bind", "metrics_bind: can't listen on {}: Address already in use"),
    ],
)
def test_a_port_that_is_taken_is_one_sentence_and_exit_code_78(
    repository: Path, cache_dir: Path, flag: str, sentence: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve("--model-repository", str(repository), "--cache-dir", str(cache_dir), f"--{flag}", address)
    assert (done.returncode, done.stderr) == (78, f"inferd: {sentence.format(address)}\n")


def test_a_repository_that_is_not_there_is_one_sentence_and_exit_code_3(tmp_path: Path, cache_dir: Path) -> None:
    absent = tmp_path / "absent"
    done = serve("--model-repository", str(absent), "--cache-dir", str(cache_dir))
    assert (done.returncode, done.stderr) == (3, f"inferd: {absent}: can't be read: No such file or directory\n")
