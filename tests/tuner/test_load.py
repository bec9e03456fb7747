"""Load on a dispatcher: the requested number in flight, each response timed, and nothing left behind."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import cycle, pairwise
from pathlib import Path

import pytest

from inferd.errors import InferenceFailed, QueueFull, TooManySequences
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.rules import QueueLimits, SchedulerRules
from inferd.scheduling.sequences import SequenceLimits
from inferd.tensors import Dim, DType, Signature, TensorSpec
from inferd.tuner import load
from inferd.tuner.load import LoadGenerator, Traffic
from inferd.tuning.measurement import MeasurementWindow
from tests.dispatchers import ROOM, Bench, RealBench
from tests.dispatchers import load as load_model
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.engine.models import tensor
from tests.event_loop import on_loop, until

HOUR = 3600.0
STATEFUL = SchedulerRules(ROOM, sequences=SequenceLimits(8, 10**12), pinned=True)
# More than ever arrive at random here, however slowly this machine answers them.
SPACIOUS = SchedulerRules(ROOM, sequences=SequenceLimits(64, 10**12), pinned=True)


def signature(*shape: Dim, max_batch: int = 0, stateful: bool = False) -> Signature:
    spec = TensorSpec("x", DType.FP32, shape or (Dim(4, 4),))
    return Signature((spec,), (spec,), max_batch, stateful=stateful)


PLAIN = Traffic(signature(), [[tensor([1, 2, 3, 4])]], dynamic_batching=False)
ROWS = Traffic(signature(Dim(1, 8), Dim(4, 4), max_batch=8), [[tensor([[1, 2, 3, 4]])]], dynamic_batching=True)
SEQUENCES = Traffic(signature(stateful=True), PLAIN.samples, dynamic_batching=False)


def in_flight(bench: Bench) -> int:
    """Requests in flight, as long as nothing is batched."""
    return bench.dispatcher.scheduler.waiting + bench.dispatcher.scheduler.running


async def answering(bench: Bench, task: "asyncio.Task[object]", end: Callable[[FakeSlot], None]) -> None:
    """A device that lets each run ``end`` as soon as it has begun, as long as ``task`` goes on."""
    while not task.done():
        for slot in bench.running:
            end(slot)
        await asyncio.sleep(0)


async def under_load(
    bench: Bench, work: Awaitable[object], end: Callable[[FakeSlot], None] = FakeSlot.complete
) -> "asyncio.Task[object]":
    """``work``, over, with a device that lets each run ``end`` at once."""
    task = asyncio.ensure_future(work)
    assert isinstance(task, asyncio.Task)
    await answering(bench, task, end)
    return task


def lasting(seconds: float) -> Callable[[FakeSlot], None]:
    """How runs end on a device with one slot, where each takes ``seconds``."""
    clock = asyncio.get_running_loop()
    begun: dict[int, float] = {}

    def end(slot: FakeSlot) -> None:
        if clock.time() >= begun.setdefault(slot.starts, clock.time()) + seconds:
            slot.complete()

    return end


@asynccontextmanager
async def endless(bench: Bench, traffic: Traffic, clients: int) -> AsyncIterator[None]:
    """``clients`` that ask without end, until the test has seen enough; then what they have put in is answered."""
    task = asyncio.create_task(LoadGenerator(bench.dispatcher, traffic).closed_loop(clients, 1, HOUR, 0.0))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.sleep(0)
        await answering(bench, task, FakeSlot.complete)
        assert task.cancelled()


# -- closed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_so_many_requests_are_in_flight_all_the_time(clients: int) -> None:
    @on_loop
    async def check() -> None:
        bench = Bench(2)
        async with endless(bench, PLAIN, clients):

            def again(turn: int) -> bool:
                """Whether the answers so far were followed by as many requests."""
                assert in_flight(bench) <= clients
                return len(bench.seen) == turn and in_flight(bench) == clients

            for turn in range(50):
                await until(lambda: again(turn))  # noqa: B023 - it is over before the next turn
                assert len(bench.running) == min(2, clients)
                bench.running[0].complete()
        # One for each answer, and no more once it was told to stop.
        assert sum(slot.starts for slot in bench.slots[0]) == len(bench.seen)
        assert bench.outcomes() == ["ok"] * len(bench.seen)
        assert 50 <= len(bench.seen) <= 50 + clients

    check()


@on_loop
async def test_windows_hold_their_latencies_ascending() -> None:
    bench = Bench(2)
    begun = time.monotonic()
    task = await under_load(bench, LoadGenerator(bench.dispatcher, PLAIN).closed_loop(3, 4, 0.01, 0.005))
    elapsed = time.monotonic() - begun
    windows: list[MeasurementWindow] = task.result()  # type: ignore[assignment]
    assert len(windows) == 4
    for window in windows:
        assert window.latencies
        assert all(one <= other for one, other in pairwise(window.latencies))
        assert window.latencies[0] > 0
        assert window.seconds >= 0.01
    assert sum(window.seconds for window in windows) <= elapsed
    # Those that came while it settled, and after the end, are in no window.
    assert sum(len(window.latencies) for window in windows) <= len(bench.seen)
    assert in_flight(bench) == 0


@on_loop
async def test_a_window_in_which_little_comes_is_longer() -> None:
    bench = Bench(1)
    task = await under_load(bench, LoadGenerator(bench.dispatcher, PLAIN).closed_loop(1, 1, 0.01, 0.0), lasting(0.001))
    [window] = task.result()  # type: ignore[misc]
    # Of 25 answers a millisecond apart at the least, no more than 11 come in the first 10 ms.
    assert window.seconds > 0.01
    assert len(window.latencies) >= 25 or window.seconds >= 0.06


@on_loop
async def test_a_window_of_the_slowest_model_has_one_answer() -> None:
    bench = Bench(1)
    task = asyncio.create_task(LoadGenerator(bench.dispatcher, PLAIN).closed_loop(1, 2, 0.001, 0.0))
    for _ in range(2):
        await until(lambda: bool(bench.running))
        # So long does the device take: ten times what a window is stretched to.
        await asyncio.sleep(0.06)
        assert not task.done()
        bench.running[0].complete()
    await answering(bench, task, FakeSlot.complete)
    first, second = await task
    assert len(first.latencies) == len(second.latencies) == 1
    assert min(first.seconds, second.seconds) > 0.01
    assert first.latencies[0] >= 0.06


@on_loop
async def test_the_error_of_a_request_that_fails_comes_out_and_nothing_stays_in_flight() -> None:
    bench = Bench(2)
    answered = 0

    def sour(slot: FakeSlot) -> None:
        nonlocal answered
        answered += 1
        slot.complete() if answered != 10 else slot.fail("too much")

    task = await under_load(bench, LoadGenerator(bench.dispatcher, PLAIN).closed_loop(3, 5, 0.005, 0.0), sour)
    with pytest.raises(InferenceFailed, match="too much"):
        task.result()
    assert in_flight(bench) == 0
    assert bench.outcomes().count("internal") == 1
    starts = sum(slot.starts for slot in bench.slots[0])
    for _ in range(10):
        await asyncio.sleep(0)
    assert sum(slot.starts for slot in bench.slots[0]) == starts == len(bench.seen)


@on_loop
async def test_one_that_is_refused_at_once_ends_it_too() -> None:
    # One runs, one waits, and the third is one too many.
    bench = Bench(1, limits=QueueLimits(1, 1 << 30))
    task = await under_load(bench, LoadGenerator(bench.dispatcher, PLAIN).closed_loop(3, 1, 0.001, 0.0))
    with pytest.raises(QueueFull):
        task.result()
    assert in_flight(bench) == 0
    assert bench.slots[0][0].starts == len(bench.seen) == 2


@on_loop
async def test_requests_that_may_be_batched_are() -> None:
    bench = Bench(1, rules=SchedulerRules(ROOM, BatchRule(max_rows=4)), service_times=[1e6], gains=[(4, 1e6)])
    slot = bench.slots[0][0]
    async with endless(bench, ROWS, 5):
        await until(lambda: bench.dispatcher.scheduler.waiting == 4)
        slot.complete()
        await until(lambda: slot.starts == 2)
        assert slot._written[0].shape == (4, 4)
    assert {seen.batch_rows for seen in bench.seen} >= {1, 4}


@on_loop
async def test_samples_are_sent_in_turn() -> None:
    bench = Bench(1)
    samples = [[tensor([n, 0, 0, 0])] for n in range(3)]
    slot, seen = bench.slots[0][0], []
    async with endless(bench, Traffic(signature(), samples, dynamic_batching=False), 1):
        for turn in range(1, 8):
            await until(lambda: slot.running and slot.starts == turn)  # noqa: B023
            seen.append(samples.index([slot._written[0]]))
            slot.complete()
    assert seen == [0, 1, 2, 0, 1, 2, 0]


# -- models that keep a state --------------------------------------------------------------------


@on_loop
async def test_each_client_of_a_model_with_state_is_a_sequence_of_its_own() -> None:
    bench = Bench(8, rules=STATEFUL)
    slots = bench.slots[0]
    async with endless(bench, SEQUENCES, 3):
        for turn in range(1, 5):
            await until(lambda: len(bench.running) == 3)
            assert bench.dispatcher.scheduler.sequences == 3
            # The same three all the time, each with its slot, begun once.
            assert sorted((s.starts, s.resets) for s in slots) == [(0, 0)] * 5 + [(turn, 1)] * 3
            for slot in bench.running:
                slot.complete()


@on_loop
async def test_sequences_are_over_when_the_load_is() -> None:
    bench = Bench(8, rules=STATEFUL)
    traffic = LoadGenerator(bench.dispatcher, SEQUENCES)
    for _ in range(2):
        task = await under_load(bench, traffic.closed_loop(8, 1, 0.002, 0.0))
        assert task.exception() is None
        assert bench.dispatcher.scheduler.sequences == 0


@on_loop
async def test_more_clients_than_sequences_may_be_live_is_an_error() -> None:
    bench = Bench(8, rules=STATEFUL)
    task = await under_load(bench, LoadGenerator(bench.dispatcher, SEQUENCES).closed_loop(9, 1, 0.002, 0.0))
    with pytest.raises(TooManySequences):
        task.result()
    assert (in_flight(bench), bench.dispatcher.scheduler.sequences) == (0, 0)


@on_loop
async def test_each_random_arrival_is_a_sequence_that_begins_and_ends() -> None:
    bench = Bench(64, rules=SPACIOUS)
    traffic = LoadGenerator(bench.dispatcher, SEQUENCES)
    await under_load(bench, traffic.closed_loop(64, 1, 0.002, 0.0))
    before = sum(s.resets for s in bench.slots[0])
    task = await under_load(bench, traffic.open_loop(500, 0.05))
    window: MeasurementWindow = task.result()  # type: ignore[assignment]
    assert all(map(math.isfinite, window.latencies))
    assert sum(s.resets for s in bench.slots[0]) - before == len(window.latencies) > 0
    assert bench.dispatcher.scheduler.sequences == 0


# -- open --------------------------------------------------------------------------------------


@on_loop
async def test_arrivals_are_random_around_the_rate_and_the_same_each_time() -> None:
    bench = Bench(4)
    traffic = LoadGenerator(bench.dispatcher, PLAIN)
    counts = []
    for _ in range(2):
        task = await under_load(bench, traffic.open_loop(2000, 0.1))
        window: MeasurementWindow = task.result()  # type: ignore[assignment]
        assert window.seconds == 0.1
        assert all(one <= other for one, other in pairwise(window.latencies))
        assert all(map(math.isfinite, window.latencies))
        counts.append(len(window.latencies))
    assert counts[0] == counts[1]
    assert 150 <= counts[0] <= 250
    assert len(bench.seen) == sum(counts)
    # Not at even distances.
    gaps = [later.stages.received - sooner.stages.received for sooner, later in pairwise(bench.seen[: counts[0]])]
    assert max(gaps) > 4 * sorted(gaps)[len(gaps) // 2] > 0


@on_loop
async def test_latency_counts_from_when_a_request_was_due() -> None:
    bench = Bench(4)
    # The sender is held up, as by a busy machine: requests due meanwhile are late by that, however fast the response.
    work = asyncio.ensure_future(LoadGenerator(bench.dispatcher, PLAIN).open_loop(1000, 0.1))
    asyncio.get_running_loop().call_soon(time.sleep, 0.05)
    begun = time.monotonic()
    window: MeasurementWindow = (await under_load(bench, work)).result()  # type: ignore[assignment]
    assert sum(latency > 0.025 for latency in window.latencies) >= 10
    assert window.latencies[-1] < time.monotonic() - begun


@on_loop
async def test_where_nothing_is_due_nothing_is_sent() -> None:
    bench = Bench(1)
    assert await LoadGenerator(bench.dispatcher, PLAIN).open_loop(0.001, 0.01) == MeasurementWindow(0.01, ())
    assert bench.slots[0][0].starts == 0


@on_loop
async def test_a_request_that_fails_is_never_in_time() -> None:
    bench = Bench(1)
    turns = cycle([False, True])

    def every_other(slot: FakeSlot) -> None:
        slot.complete() if next(turns) else slot.fail("sour")

    window: MeasurementWindow = (
        await under_load(bench, LoadGenerator(bench.dispatcher, PLAIN).open_loop(500, 0.1), every_other)
    ).result()  # type: ignore[assignment]
    late = window.latencies.count(math.inf)
    assert late == bench.outcomes().count("internal") > 10
    assert window.latencies[-late:] == (math.inf,) * late
    assert window.within(HOUR) == len(window.latencies) - late == bench.outcomes().count("ok") > 10


@on_loop
async def test_a_request_that_is_refused_is_never_in_time() -> None:
    bench = Bench(1, limits=QueueLimits(1, 1 << 30))
    window: MeasurementWindow = (
        await under_load(bench, LoadGenerator(bench.dispatcher, PLAIN).open_loop(2000, 0.1), lasting(0.01))
    ).result()  # type: ignore[assignment]
    in_time = window.within(HOUR)
    assert 0 < in_time == len(bench.seen)
    # Of about 200 that came, the device can have had 12.
    assert window.latencies.count(math.inf) == len(window.latencies) - in_time > 100


@on_loop
async def test_what_is_not_answered_is_given_up_and_out_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_PATIENCE", 0.01)
    bench = Bench(2)
    traffic = LoadGenerator(bench.dispatcher, PLAIN)
    window = await traffic.open_loop(500, 0.05)
    assert set(window.latencies) == {math.inf}
    assert in_flight(bench) == 0
    assert all(slot.cancels == 1 for slot in bench.slots[0])
    # Nothing of it stands before what comes next.
    monkeypatch.undo()
    task = await under_load(bench, traffic.open_loop(500, 0.05))
    after: MeasurementWindow = task.result()  # type: ignore[assignment]
    assert len(after.latencies) == len(window.latencies)
    assert all(map(math.isfinite, after.latencies))


# -- real models -----------------------------------------------------------------------------------


@on_loop
async def test_a_real_model_under_both_loads(tmp_path: Path) -> None:
    async with RealBench(load_model(models.scaled(2.0), tmp_path)) as bench:
        traffic = LoadGenerator(
            bench.dispatcher, Traffic(bench.loaded.signature, PLAIN.samples, dynamic_batching=False)
        )
        windows = await traffic.closed_loop(4, 3, 0.02, 0.01)
        assert [len(w.latencies) > 0 for w in windows] == [True] * 3
        window = await traffic.open_loop(200, 0.1)
        assert all(map(math.isfinite, window.latencies))
        assert set(map(str, (seen.outcome for seen in bench.seen))) == {"ok"}


@on_loop
async def test_a_real_model_that_keeps_a_state(tmp_path: Path) -> None:
    loaded = load_model(models.stateful(), tmp_path, "[sequences]\nmax_active = 64")
    async with RealBench(loaded, SPACIOUS) as bench:
        assert loaded.signature.stateful
        traffic = LoadGenerator(
            bench.dispatcher, Traffic(loaded.signature, [[tensor([[1, 2]])]], dynamic_batching=False)
        )
        [window] = await traffic.closed_loop(4, 1, 0.02, 0.0)
        assert window.latencies
        assert all(map(math.isfinite, (await traffic.open_loop(200, 0.05)).latencies))
        assert bench.dispatcher.scheduler.sequences == 0


@on_loop
async def test_a_real_model_that_fails_on_what_it_is_given(tmp_path: Path) -> None:
    async with RealBench(load_model(models.broadcasting(), tmp_path, "[warmup]\nruns = 0")) as bench:
        impossible = [tensor([1, 2, 3, 4]), tensor([2, 3], DType.INT64)]
        traffic = LoadGenerator(bench.dispatcher, Traffic(bench.loaded.signature, [impossible], dynamic_batching=False))
        with pytest.raises(InferenceFailed):
            await traffic.closed_loop(2, 1, 0.01, 0.0)
        assert bench.dispatcher.scheduler.running == bench.dispatcher.scheduler.waiting == 0
