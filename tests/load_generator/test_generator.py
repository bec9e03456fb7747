"""One step's requests, against a real server on the same loop."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from inferd.bench.load import Open
from inferd.bench.tally import OK, UNANSWERED, RequestTally
from inferd.load_generator.generator import Generator
from inferd.rpc import load_channels
from inferd.security.client_credentials import NO_CREDENTIALS
from tests.bench.inference_server import Answer, serving
from tests.event_loop import on_loop

WAYS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
SECOND = 1_000_000_000
REQUESTS = (b"a", b"b", b"c")


@asynccontextmanager
async def generating(
    answer: Answer, seconds: float, *, stream: bool = False, connections: int = 2, objective: float = 3600.0
) -> AsyncIterator[tuple[Generator, RequestTally]]:
    """A generator whose window opens now."""
    async with (
        serving(answer) as address,
        load_channels.open_channels(
            address, connections, stream=stream, deadline=None, credentials=NO_CREDENTIALS
        ) as channels,
    ):
        now = time.monotonic_ns()
        tally = RequestTally(now, now + round(seconds * SECOND), round(objective * SECOND))
        yield Generator(channels, REQUESTS, tally), tally


@WAYS
@on_loop
async def test_a_closed_loop_has_as_many_in_flight_as_it_was_told(stream: bool) -> None:
    inside, most, answered = 0, 0, 0
    met, enough = asyncio.Event(), asyncio.Event()

    async def answer_once_five_have_met(_: bytes) -> grpc.StatusCode:
        nonlocal inside, most, answered
        inside += 1
        most = max(most, inside)
        if inside == 5:
            met.set()
        await met.wait()
        inside -= 1
        answered += 1
        if answered == 20:
            enough.set()
        return grpc.StatusCode.OK

    async with generating(answer_once_five_have_met, 3600.0, stream=stream) as (generator, tally):
        running = asyncio.create_task(generator.closed(5))
        await enough.wait()
        generator.stop(10)
        await running
        await generator.settle(10)
    assert most == 5
    window = tally.window(0.0)
    # Each seat sent again until the window closed, and its last response was awaited.
    assert window.due == answered >= 20
    assert window.codes == {OK: answered}


@WAYS
@on_loop
async def test_an_open_loop_sends_every_request_that_was_due_in_turn(stream: bool) -> None:
    seen: list[bytes] = []

    async def answer(request: bytes) -> grpc.StatusCode:
        seen.append(request)
        return grpc.StatusCode.OK

    async with generating(answer, 0.3, stream=stream, connections=1) as (generator, tally):
        due = [tally.opens + int(at) for at in Open(200, "poisson").due(0.3, 7)]
        await generator.open(due)
        await generator.settle(10)
    assert sorted(seen) == sorted(REQUESTS[n % 3] for n in range(len(due)))
    window = tally.window(0.0)
    assert window.codes == {OK: len(due)}
    assert (window.latencies.count, window.lags.count) == (len(due), len(due))


@on_loop
async def test_latency_counts_from_the_due_time_even_if_the_server_delays_all_requests() -> None:
    due: list[int] = []
    arrived, all_arrived = 0, asyncio.Event()

    async def answer_when_all_are_here(_: bytes) -> grpc.StatusCode:
        nonlocal arrived
        arrived += 1
        if arrived == len(due):
            all_arrived.set()
        await all_arrived.wait()
        return grpc.StatusCode.OK

    async with generating(answer_when_all_are_here, 0.2) as (generator, tally):
        due += [tally.opens + int(at) for at in Open(100, "constant").due(0.2, 0)]
        await generator.open(due)
        await generator.settle(10)
    # No response came before the last request was sent: the first waited for the whole schedule.
    assert all(late >= due[-1] - at for late, at in zip(sorted(tally.latencies, reverse=True), due, strict=True))


@WAYS
@on_loop
async def test_a_late_client_sends_every_request_and_counts_the_delay_as_latency(stream: bool) -> None:
    async def answer(_: bytes) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async with generating(answer, 0.2, stream=stream) as (generator, tally):
        # The window was over before the client got to it.
        tally.opens -= SECOND
        tally.closes -= SECOND
        due = [tally.opens + int(at) for at in Open(500, "constant").due(0.2, 0)]
        await generator.open(due)
        await generator.settle(10)
    window = tally.window(0.0)
    assert window.codes == {OK: 100}
    assert window.lags.least >= 0.8 * SECOND
    assert window.latencies.least >= window.lags.least
    # No response came while it was open.
    assert window.answered == 0


@WAYS
@on_loop
async def test_refusals_are_counted_by_their_code(stream: bool) -> None:
    async def refuse(_: bytes) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    async with generating(refuse, 0.1, stream=stream) as (generator, tally):
        await generator.open([tally.opens, tally.opens + 1])
        await generator.settle(10)
    assert tally.window(0.0).codes == {"RESOURCE_EXHAUSTED": 2}


@WAYS
@on_loop
async def test_unanswered_requests_are_given_up(stream: bool) -> None:
    async def never(_: bytes) -> grpc.StatusCode:
        await asyncio.Event().wait()
        return grpc.StatusCode.OK

    async with generating(never, 0.05, stream=stream) as (generator, tally):
        await generator.open([tally.opens] * 3)
        await generator.settle(0.05)
    assert tally.window(0.0).codes == {UNANSWERED: 3}


@WAYS
@on_loop
async def test_stopping_closes_the_window_and_drops_unfinished_requests(stream: bool) -> None:
    count, stuck = 0, asyncio.Event()

    async def two_answers(_: bytes) -> grpc.StatusCode:
        nonlocal count
        count += 1
        if count > 2:
            stuck.set()
            await asyncio.Event().wait()
        return grpc.StatusCode.OK

    async with generating(two_answers, 3600.0, stream=stream) as (generator, tally):
        running = asyncio.create_task(generator.closed(1))
        await stuck.wait()
        generator.stop(0.0)
        await running
        await generator.settle(10)
    window = tally.window(0.0)
    assert window.seconds < 60
    assert window.codes == {OK: 2}


@on_loop
async def test_the_objective_decides_which_responses_are_in_time() -> None:
    async def answer(_: bytes) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async with generating(answer, 0.1, objective=0.0) as (generator, tally):
        await generator.open([tally.opens])
        await generator.settle(10)
    assert (tally.window(0.0).due, tally.window(0.0).in_time) == (1, 0)
