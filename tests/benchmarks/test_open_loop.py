import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from benchmarks.closed_loop import capacity
from benchmarks.open_loop import METHOD, UNANSWERED, Figures, Outcome, arrivals, poisson, quantile

from tests.event_loop import on_loop

Answer = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]
RATE, SECONDS, SEED = 100.0, 0.3, 7


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A real server of ModelInfer on this very loop; its address."""
    service, method = METHOD.strip("/").split("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(answer)})
    running = grpc.aio.server()
    running.add_generic_rpc_handlers((handler,))
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await running.stop(None)


def seconds(value: float) -> int:
    return round(value * 1e9)


def test_arrivals_are_the_seeded_exponential_gaps_added_up() -> None:
    times = arrivals(1000, 1.0, SEED)

    gaps = np.random.default_rng(SEED).exponential(1 / 1000, 900)
    np.testing.assert_array_equal(times[:900], (np.cumsum(gaps) * 1e9).astype(np.int64))
    np.testing.assert_array_equal(times, arrivals(1000, 1.0, SEED))


@pytest.mark.parametrize("rate", [0.1, 5.0, 2000.0])
def test_arrivals_fill_the_whole_time_at_their_rate(rate: float) -> None:
    length = 20_000 / rate

    times = arrivals(rate, length, SEED)

    assert np.all(np.diff(times) >= 0)
    assert times[0] >= 0
    assert times[-1] < length * 1e9
    # 20 000 are expected, with a standard deviation of 141.
    assert abs(len(times) - 20_000) < 5 * 141


def test_another_seed_makes_other_arrivals() -> None:
    assert arrivals(RATE, SECONDS, 1).tolist() != arrivals(RATE, SECONDS, 2).tolist()


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.001, 1)])
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(share: float, value: float) -> None:
    assert quantile(np.random.default_rng(SEED).permutation(np.arange(1, 101)), share) == value


def test_nothing_has_no_quantile() -> None:
    assert quantile([], 0.99) is None


@on_loop
async def test_every_request_is_sent_as_it_is_at_its_time_and_answered() -> None:
    seen = []

    async def answer(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        seen.append(request)
        return b""

    async with server(answer) as address:
        outcomes = await poisson(address, b"\xffnot a message", RATE, SECONDS, SEED)

    due = arrivals(RATE, SECONDS, SEED).tolist()
    assert [outcome.intended for outcome in outcomes] == due
    assert [outcome.code for outcome in outcomes] == ["OK"] * len(due)
    assert seen == [b"\xffnot a message"] * len(due)
    assert all(0 <= outcome.lag <= outcome.latency for outcome in outcomes)


@on_loop
async def test_latency_counts_from_the_intended_start_of_each_request() -> None:
    due = arrivals(RATE, SECONDS, SEED).tolist()
    arrived, all_arrived = [], asyncio.Event()

    async def answer_when_all_are_here(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        arrived.append(request)
        if len(arrived) == len(due):
            all_arrived.set()
        await all_arrived.wait()
        return request

    async with server(answer_when_all_are_here) as address:
        outcomes = await poisson(address, b"", RATE, SECONDS, SEED)

    assert [outcome.code for outcome in outcomes] == ["OK"] * len(due)
    assert all(outcome.latency >= due[-1] - outcome.intended for outcome in outcomes)


@on_loop
async def test_a_client_that_is_held_up_counts_against_the_server() -> None:
    held_up: list[bool] = []

    async def hold_the_whole_loop_up_once(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        if not held_up:
            time.sleep(SECONDS)  # noqa: ASYNC251 - the client shares this loop
            held_up.append(True)
        return request

    async with server(hold_the_whole_loop_up_once) as address:
        outcomes = await poisson(address, b"", RATE, SECONDS, SEED)

    # No answer comes before the loop goes on, which is so long after the first request was due.
    over = outcomes[0].intended + seconds(SECONDS)
    assert all(outcome.intended + outcome.latency >= over for outcome in outcomes)


@on_loop
async def test_refusals_are_told_by_their_code() -> None:
    async def refuse(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "not now")
        raise AssertionError("abort returned")

    async with server(refuse) as address:
        outcomes = await poisson(address, b"", RATE, SECONDS, SEED)

    assert {outcome.code for outcome in outcomes} == {"RESOURCE_EXHAUSTED"}


@on_loop
async def test_unanswered_requests_are_given_up_after_a_while() -> None:
    async def never(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        await asyncio.Event().wait()
        return request

    async with server(never) as address:
        outcomes = await poisson(address, b"", RATE, SECONDS, SEED, patience=0.05)

    assert {outcome.code for outcome in outcomes} == {UNANSWERED}
    assert all(outcome.latency >= outcomes[-1].intended - outcome.intended + seconds(0.05) for outcome in outcomes)


@on_loop
async def test_a_closed_loop_has_as_many_requests_in_flight_as_it_was_told() -> None:
    inside, most, full = 0, 0, asyncio.Event()

    async def answer_once_three_have_met(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 3:
            full.set()
        await full.wait()
        inside -= 1
        return request

    async with server(answer_once_three_have_met) as address:
        await capacity(address, b"", 3, 0.05, windows=2, warm_up=0.0)

    assert most == 3


def test_figures_count_answers_by_when_they_came_and_latencies_by_when_they_were_due() -> None:
    def outcome(intended: float, latency: float, code: str = "OK") -> Outcome:
        return Outcome(seconds(intended), seconds(0.001), seconds(latency), code)

    run = [
        outcome(0.5, 0.1),  # over before the window opens
        outcome(0.9, 0.2),  # due before, answered inside
        outcome(1.5, 0.3),  # answered, but later than the objective
        outcome(1.6, 0.0, "RESOURCE_EXHAUSTED"),
        outcome(1.7, 0.1, "DEADLINE_EXCEEDED"),
        outcome(1.8, 0.1, "INTERNAL"),
        outcome(2.9, 0.2),  # due inside, answered after the window closed
        outcome(2.9, 5.0, UNANSWERED),
    ]

    figures = Figures.of([run], settle=1.0, seconds=2.0, objective=0.25)

    assert figures == Figures(
        offered=3.0,
        answered=1.0,
        goodput=0.5,
        refused=0.5,
        expired=0.5,
        failed=0.5,
        unanswered=0.5,
        p50=0.2,
        p99=0.3,
        lag_p99=0.001,
    )


def test_figures_of_several_runs_are_rates_over_their_time_together() -> None:
    runs = [[Outcome(0, 0, seconds(0.1), "OK")], [Outcome(0, 0, seconds(0.3), "OK")] * 3]

    figures = Figures.of(runs, settle=0.0, seconds=1.0, objective=0.2)

    assert (figures.answered, figures.goodput, figures.p50) == (2.0, 0.5, 0.3)
