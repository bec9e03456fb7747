"""Sequences that end, time out, get lost or are one too many: none leaves its state behind."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from tests.conftest import ROOT
from tests.system import state_models, wire
from tests.system.daemon import Daemon
from tests.system.gauges import gauge, wait_until
from tests.system.state_models import add, first, flags, try_shape, work
from tests.system.wire import OK, connect, method, request

pytestmark = pytest.mark.system

LIVE = "inferd_sequences"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = state_models.write(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


class Talk:
    """Requests one after another over a connection of its own, each with its result."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.infer = method(channel, "ModelInfer")

    async def say(self, message: pb.ModelInferRequest) -> float | tuple[StatusCode, str]:
        """The answer's first element, or code and sentence."""
        call = self.infer(message)
        if await call.code() is OK:
            return first(await call)
        return await wire.outcome(call)


def gone(model: str, sequence: int | str, why: str) -> tuple[StatusCode, str]:
    return StatusCode.NOT_FOUND, f"model '{model}': sequence '{sequence}' {why}; begin with sequence_start"


def lost(model: str, sequence: int | str, why: str) -> tuple[StatusCode, str]:
    return StatusCode.ABORTED, f"model '{model}': sequence '{sequence}' is lost: {why}; start it again"


# -- not to be had ----------------------------------------------------------------


def test_a_sequence_that_never_began_is_not_known(daemon: Daemon) -> None:
    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say = Talk(channel).say
            return [await say(add(1, 77)), await say(add(1, "a\nb", end=True)), await say(work(1, 77))]

    assert asyncio.run(talk()) == [
        gone("inner", 77, "is not known"),
        gone("inner", "a b", "is not known"),
        gone("steps", 77, "is not known"),
    ]


def test_a_sequence_is_over_after_its_last_request(daemon: Daemon) -> None:
    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say = Talk(channel).say
            return [
                await say(add(1, 78, start=True)),
                await say(add(1, 78, end=True)),
                await say(add(1, 78)),
                await say(add(1, 78, start=True, end=True)),
            ]

    assert asyncio.run(talk()) == [2.0, 3.0, gone("inner", 78, "has ended"), 2.0]
    wait_until(daemon, LIVE, "inner", 0)


def test_a_sequence_without_requests_times_out(daemon: Daemon) -> None:
    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say = Talk(channel).say
            said: list[Any] = [await say(add(1, 79, "brief", start=True))]
            await asyncio.to_thread(wait_until, daemon, LIVE, "brief", 0)
            return [*said, await say(add(1, 79, "brief")), await say(add(1, 79, "brief", start=True, end=True))]

    assert asyncio.run(talk()) == [2.0, gone("brief", 79, "timed out after 0.3 s without a request"), 2.0]


def test_one_sequence_too_many_is_told_when_to_come_back_and_served_once_there_is_room(daemon: Daemon) -> None:
    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say, infer = Talk(channel).say, method(channel, "ModelInfer")
            sums: list[Any] = [await say(add(1, sequence, "three", start=True)) for sequence in "abc"]
            refused = infer(add(1, "d", "three", start=True))
            code, sentence = await wire.outcome(refused)
            assert code is StatusCode.RESOURCE_EXHAUSTED
            assert sentence.startswith("model 'three': the limit of 3 live sequences is reached; retry in ")
            trailers, retry = dict(await refused.trailing_metadata()), RetryInfo()
            assert Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(retry)
            # No longer than the first of the three may rest.
            assert 1 <= int(trailers["grpc-retry-pushback-ms"]) == retry.retry_delay.ToMilliseconds() <= 60_000
            # Those that are live go on, and the end of one is room for the next.
            sums += [await say(add(1, "a", "three")), await say(add(1, "b", "three", end=True))]
            sums += [await say(add(5, "d", "three", start=True, end=True))]
            sums += [await say(add(1, sequence, "three", end=True)) for sequence in "ac"]
            return sums

    assert asyncio.run(talk()) == [2.0, 2.0, 2.0, 3.0, 3.0, 10.0, 4.0, 3.0]
    wait_until(daemon, LIVE, "three", 0)


def test_requests_that_contradict_the_model_leave_the_sequence_as_it_was(daemon: Daemon) -> None:
    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say = Talk(channel).say
            outside = request("inner", {"x": np.zeros((1, 2), np.float32)})
            narrow = request("inner", {"x": np.zeros((1, 1), np.float32)}, parameters=flags(80, end=True))
            inputs = {"x": np.zeros((2, 1), np.float32)}
            two = request("batched", inputs, parameters=flags(80, start=True))
            inputs["state"] = np.zeros((2, 2, 1), np.float32)
            own = request("batched", inputs, parameters=flags(80, start=True))
            said: list[Any] = [await say(add(1, 80, start=True))]
            for wrong in (outside, narrow, two, own):
                code, sentence = await wire.outcome(Talk(channel).infer(wrong))
                assert code is StatusCode.INVALID_ARGUMENT
                said.append(sentence.partition("; ")[0])
            return [*said, await say(add(1, 80, end=True))]

    assert asyncio.run(talk()) == [
        2.0,
        "model 'inner': it keeps state between requests: send a sequence_id, and sequence_start with the first request",
        "model 'inner': input 'x' must have shape [1,2], got [1,1]",
        "model 'batched': a request of a sequence must have a batch of 1, got 2",
        "model 'batched': input 'state' is state that the server carries in a sequence",
        3.0,
    ]


# -- lost -------------------------------------------------------------------------


def test_a_run_that_fails_loses_the_sequence_and_what_was_sent_behind_it(daemon: Daemon) -> None:
    async def stream() -> list[str]:
        async with connect(daemon.grpc) as channel:
            call = method(channel, "ModelStreamInfer")()
            for number, last in enumerate((4, 3, 4, 4)):
                await call.write(try_shape(last, 81, str(number), start=number == 0))
            await call.done_writing()
            return [answer.error_message async for answer in call]

    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say = Talk(channel).say
            return [await say(try_shape(4, 81)), await say(try_shape(4, 81, start=True, end=True))]

    good, failed, *behind = asyncio.run(stream())
    assert good == ""
    assert failed.startswith("[INTERNAL] request '1': model 'frail': inference failed: ")
    sentence = lost("frail", 81, "one of its requests failed")[1]
    assert behind == [f"[ABORTED] request '{number}': {sentence}" for number in (2, 3)]
    assert asyncio.run(talk()) == [lost("frail", 81, "one of its requests failed"), 1.0]
    wait_until(daemon, LIVE, "frail", 0)


def test_a_deadline_that_passes_during_a_run_loses_the_sequence(daemon: Daemon) -> None:
    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say = Talk(channel).say
            said: list[Any] = [await say(work(1, 82, start=True)), await say(work(4000, 82, timeout=30_000))]
            said.append(await say(work(1, 82)))
            return [*said, await say(work(2, 82, start=True, end=True))]

    assert asyncio.run(talk()) == [
        1.0,
        (StatusCode.DEADLINE_EXCEEDED, "model 'steps': deadline passed while the request was running"),
        lost("steps", 82, "a request passed its deadline while running"),
        2.0,
    ]
    wait_until(daemon, LIVE, "steps", 0)


def test_a_client_that_gives_up_during_a_run_loses_the_sequence(daemon: Daemon) -> None:
    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            talking = Talk(channel)
            said: list[Any] = [await talking.say(work(1, 83, start=True))]
            given_up = talking.infer(work(4000, 83))
            await asyncio.to_thread(wait_until, daemon, "inferd_infer_requests_busy", "steps", 1)
            given_up.cancel()
            assert await given_up.code() is StatusCode.CANCELLED
            # Behind the run, which is not to be had back, and behind the sentence that says so.
            return [*said, await talking.say(work(5, 84, start=True, end=True)), await talking.say(work(1, 83))]

    assert asyncio.run(talk()) == [1.0, 5.0, lost("steps", 83, "one of its requests was cancelled while running")]
    wait_until(daemon, LIVE, "steps", 0)


def test_a_request_that_expired_before_it_ran_leaves_the_state_as_it_was(daemon: Daemon) -> None:
    async def talk() -> tuple[list[float], list[str]]:
        async with connect(daemon.grpc) as channel:
            call = method(channel, "ModelStreamInfer")()
            await call.write(work(2000, 85, "slow", start=True))
            await call.write(work(7, 85, "expired", timeout=20_000))
            await call.write(work(3, 85, "last", end=True))
            await call.done_writing()
            answers = [answer async for answer in call]
            good = [first(answer.infer_response) for answer in answers if not answer.error_message]
            return good, [answer.error_message for answer in answers if answer.error_message]

    sums, (failed,) = asyncio.run(talk())
    assert sums == [2000.0, 2003.0]
    assert failed.startswith("[DEADLINE_EXCEEDED] request 'expired': model 'steps': deadline passed while ")
    wait_until(daemon, LIVE, "steps", 0)


# -- left behind ------------------------------------------------------------------


def test_a_stream_takes_the_sequences_with_it_that_came_over_it_last(daemon: Daemon) -> None:
    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say = Talk(channel).say
            call = method(channel, "ModelStreamInfer")()
            for sequence in ("left", "taken over"):
                await call.write(add(1, sequence, start=True))
                assert first((await call.read()).infer_response) == 2.0
            said: list[Any] = [await say(add(1, "taken over"))]
            await call.done_writing()
            assert await call.code() is OK
            await asyncio.to_thread(wait_until, daemon, LIVE, "inner", 1)
            return [*said, await say(add(1, "left")), await say(add(1, "taken over", end=True))]

    assert asyncio.run(talk()) == [3.0, gone("inner", "left", "ended with its stream"), 4.0]
    wait_until(daemon, LIVE, "inner", 0)


def test_a_client_that_is_killed_takes_its_sequences_with_it(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "tests.system.sequences_client", daemon.grpc, "8"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "begun\n"
            assert gauge(daemon, LIVE, "inner") == 8
        finally:
            client.kill()
    wait_until(daemon, LIVE, "inner", 0)

    async def talk() -> list[Any]:
        async with connect(daemon.grpc) as channel:
            say = Talk(channel).say
            # All eight places are free again.
            begun = [await say(add(2, sequence, start=True)) for sequence in range(1, 9)]
            return begun + [await say(add(2, sequence, end=True)) for sequence in range(1, 9)]

    assert asyncio.run(talk()) == [4.0] * 8 + [6.0] * 8


def test_a_stream_that_breaks_off_during_a_run_leaves_nothing_behind(daemon: Daemon) -> None:
    async def talk() -> Any:
        async with connect(daemon.grpc) as channel:
            call = method(channel, "ModelStreamInfer")()
            for number in range(3):
                await call.write(work(2000, 86, str(number), start=number == 0))
            await asyncio.to_thread(wait_until, daemon, "inferd_infer_requests_busy", "steps", 1)
            call.cancel()
        async with connect(daemon.grpc) as channel:
            await asyncio.to_thread(wait_until, daemon, LIVE, "steps", 0)
            return await Talk(channel).say(work(1, 86))

    code, sentence = asyncio.run(talk())
    assert code is StatusCode.ABORTED
    assert sentence.startswith("model 'steps': sequence '86' is lost: ")
    wait_until(daemon, "inferd_infer_requests_busy", "steps", 0)
