"""A pool reports each run once, whichever way it ended, and never loses a slot."""

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from inferd.config.model import parse
from inferd.engine.model import _signature
from inferd.engine.pool import Completion, Pool
from inferd.engine.runtime import ov
from inferd.engine.slot import InferSlot, RunFailed
from inferd.engine.sync_slot import SyncSlot
from inferd.tensors import DType, Tensor
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.engine.models import numbers, tensor

X = tensor([1, 2, 3, 4])
ONCE, IMPOSSIBLE = tensor([1, 4], DType.INT64), tensor([3, 2], DType.INT64)


class Fakes:
    """A pool on fakes, the fakes, and how often it called for attention."""

    def __init__(self, size: int, *, deaf: bool = False) -> None:
        self.slots: list[FakeSlot] = []
        self.calls = 0
        self.pool = Pool("CPU", size, lambda on_done: self._slot(on_done, deaf))
        self.pool.attach(self._notified)

    def _slot(self, on_done: object, deaf: bool) -> FakeSlot:
        self.slots.append(FakeSlot(on_done, deaf=deaf))  # type: ignore[arg-type]
        return self.slots[-1]

    def _notified(self) -> None:
        self.calls += 1


Kind = type[InferSlot] | type[SyncSlot]


@pytest.fixture(params=[InferSlot, SyncSlot])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@contextmanager
def real_pool(network: ov.Model, size: int, kind: Kind) -> Iterator[Pool]:
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 2})
    signature = _signature(network, parse("", "m"))
    pool = Pool("CPU", size, lambda on_done: kind(compiled.create_infer_request(), signature, on_done))
    try:
        yield pool
    finally:
        pool.close()


def ends_of_one(pool: Pool) -> list[tuple[int, str | None]]:
    """How the only run in flight ended, once it has."""
    while not (completions := pool.sweep()):
        pass
    return ends(completions)


def ends(completions: list[Completion]) -> list[tuple[int, str | None]]:
    return [(c.slot, c.failure) for c in completions]


# -- each run is reported once -------------------------------------------------------


def test_a_run_that_ended_well_is_reported_once() -> None:
    fakes = Fakes(2)
    fakes.pool.start(1, [[X]])
    assert fakes.pool.in_flight == 1
    fakes.slots[1].complete()

    assert ends(fakes.pool.drain()) == [(1, None)]
    assert fakes.pool.drain() == fakes.pool.sweep() == []
    assert fakes.pool.in_flight == 0


def test_a_run_that_failed_is_found_by_the_reaper_once() -> None:
    fakes = Fakes(2)
    fakes.pool.start(0, [[X]])
    fakes.slots[0].fail("out of luck")

    assert fakes.pool.drain() == []
    assert ends(fakes.pool.sweep()) == [(0, "out of luck")]
    assert fakes.pool.sweep() == []
    assert fakes.pool.in_flight == 0


def test_a_cancelled_run_gives_its_slot_back() -> None:
    fakes = Fakes(1)
    fakes.pool.start(0, [[X]])
    fakes.pool.cancel(0)
    assert ends(fakes.pool.sweep()) == [(0, "Infer Request was canceled")]

    fakes.pool.start(0, [[X]])
    fakes.slots[0].complete()
    assert ends(fakes.pool.drain()) == [(0, None)]


def test_cancelling_a_slot_that_does_not_run_does_not_reach_it() -> None:
    fakes = Fakes(1)
    fakes.pool.cancel(0)
    assert fakes.slots[0].cancels == 0


def test_runs_still_going_are_left_alone_by_the_reaper() -> None:
    fakes = Fakes(3)
    for slot in range(3):
        fakes.pool.start(slot, [[X]])
    fakes.slots[2].fail("no")
    fakes.slots[0].complete()

    assert ends(fakes.pool.sweep()) == [(0, None), (2, "no")]
    assert fakes.pool.in_flight == 1


def test_a_hand_over_that_comes_after_its_run_was_swept_is_not_taken_for_the_next_run() -> None:
    class EndsWhileLookedAt(FakeSlot):
        def poll(self) -> bool:
            if self.running:
                self.complete()
            return super().poll()

    pool = Pool("CPU", 1, EndsWhileLookedAt)
    pool.start(0, [[X]])
    assert ends(pool.sweep()) == [(0, None)]

    pool.start(0, [[X]])
    assert pool.drain() == []
    assert pool.in_flight == 1
    assert ends(pool.sweep()) == [(0, None)]


def test_a_burst_of_completions_calls_for_attention_once() -> None:
    fakes = Fakes(3)
    for slot in range(3):
        fakes.pool.start(slot, [[X]])
    for slot in fakes.slots:
        slot.complete()
    assert fakes.calls == 1
    assert len(fakes.pool.drain()) == 3

    fakes.pool.start(0, [[X]])
    fakes.slots[0].complete()
    assert fakes.calls == 2


def test_a_loop_that_is_gone_does_not_raise_into_the_device_thread(recwarn: pytest.WarningsRecorder) -> None:
    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    fakes = Fakes(1)
    fakes.pool.attach(closed)
    fakes.pool.start(0, [[X]])
    fakes.slots[0].complete()
    assert ends(fakes.pool.drain()) == [(0, None)]
    assert not recwarn.list


def test_the_first_completion_after_warming_up_calls_for_attention(kind: Kind) -> None:
    with real_pool(models.identity(), 2, kind) as pool:
        pool.run_all([X])
        called = threading.Event()
        pool.attach(called.set)
        assert pool.drain() == []
        pool.start(0, [[X]])
        assert called.wait(10)
        assert ends(pool.drain()) == [(0, None)]


def test_the_first_completion_calls_for_attention_though_the_warm_up_was_not_drained(kind: Kind) -> None:
    with real_pool(models.identity(), 2, kind) as pool:
        pool.run_all([X])
        called = threading.Event()
        pool.attach(called.set)
        pool.start(0, [[X]])
        assert called.wait(10)


# -- starting ------------------------------------------------------------------------


def test_a_run_that_does_not_begin_leaves_the_slot_free() -> None:
    fakes = Fakes(1)
    fakes.slots[0].refuses_to_start = "busy with itself"
    with pytest.raises(RunFailed, match="busy with itself"):
        fakes.pool.start(0, [[X]])
    assert fakes.pool.in_flight == 0

    fakes.pool.start(0, [[X]])
    fakes.slots[0].complete()
    assert ends(fakes.pool.drain()) == [(0, None)]


def test_input_that_can_not_be_copied_leaves_the_slot_free(kind: Kind) -> None:
    with real_pool(models.identity(), 1, kind) as pool:
        with pytest.raises(RunFailed, match=r"inputs could not be copied \(ValueError\)"):
            pool.start(0, [[Tensor(DType.FP32, (4,), b"short")]])
        assert pool.in_flight == 0
        pool.run_all([X])


def test_input_of_a_wrong_shape_leaves_the_slot_free() -> None:
    with real_pool(models.identity(), 1, InferSlot) as pool:
        with pytest.raises(RunFailed, match=r"got \[5\] expecting \[4\]"):
            pool.start(0, [[Tensor(DType.FP32, (5,), bytes(20))]])
        assert pool.in_flight == 0
        pool.run_all([X])


def test_on_a_thread_of_its_own_a_wrong_shape_is_told_like_any_failure() -> None:
    with real_pool(models.identity(), 1, SyncSlot) as pool:
        pool.start(0, [[Tensor(DType.FP32, (5,), bytes(20))]])
        ((slot, failure),) = ends_of_one(pool)
        assert slot == 0
        assert failure is not None
        assert "got [5] expecting [4]" in failure
        pool.run_all([X])


def test_a_fresh_start_forgets_what_the_slot_has_kept_and_another_does_not(kind: Kind) -> None:
    with real_pool(models.stateful(), 1, kind) as pool:
        seen = []
        for fresh in (True, False, True):
            pool.start(0, [[tensor([[1, 2]])]], fresh=fresh)
            assert ends_of_one(pool) == [(0, None)]
            seen.append(numbers(pool.read(0, [0])[0]).tolist())
    # The model starts from its first input, and then adds each.
    assert seen == [[[2, 4]], [[3, 6]], [[2, 4]]]


def test_members_of_a_run_are_read_by_their_rows() -> None:
    fakes = Fakes(1)
    fakes.pool.start(0, [[tensor([[1, 2]])], [tensor([[3, 4], [5, 6]])]])
    fakes.slots[0].complete()
    assert ends(fakes.pool.drain()) == [(0, None)]
    assert [numbers(fakes.pool.read(0, [0], rows)[0]).tolist() for rows in (range(1), range(1, 3), None)] == [
        [[1, 2]],
        [[3, 4], [5, 6]],
        [[1, 2], [3, 4], [5, 6]],
    ]


def test_a_slot_that_can_not_be_made_leaves_nothing_of_earlier_ones() -> None:
    made: list[FakeSlot] = []

    def make(on_done: Callable[[], None]) -> FakeSlot:
        if len(made) == 2:
            raise RuntimeError("no memory on the device")
        made.append(FakeSlot(on_done))
        return made[-1]

    with pytest.raises(RuntimeError, match="no memory"):
        Pool("CPU", 3, make)
    assert [slot.closed for slot in made] == [True, True]


# -- warming up ----------------------------------------------------------------------


class EndsWhenWaitedFor(FakeSlot):
    """Writes down in ``log`` when its runs begin and end; ``fails`` says how."""

    def __init__(self, on_done: Callable[[], None], log: list[tuple[str, FakeSlot]], *, fails: bool = False) -> None:
        super().__init__(on_done)
        self._log = log
        self._fails = fails

    def start(self) -> None:
        super().start()
        self._log.append(("begun", self))

    def wait(self) -> None:
        self._log.append(("ended", self))
        self.fail("out of luck") if self._fails else self.complete()
        super().wait()


@pytest.mark.parametrize(("size", "width"), [(5, 2), (4, 4), (3, 1), (6, 3), (2, None)])
def test_warming_up_runs_every_slot_once_and_no_more_side_by_side_than_the_width(size: int, width: int | None) -> None:
    log: list[tuple[str, FakeSlot]] = []
    pool = Pool("CPU", size, partial(EndsWhenWaitedFor, log=log), width=width)
    assert pool.width == (width or size)
    pool.run_all([X])

    running = most = 0
    for what, _ in log:
        running += 1 if what == "begun" else -1
        most = max(most, running)
    assert most == pool.width
    assert len({slot for what, slot in log if what == "begun"}) == size
    assert len(log) == 2 * size


def test_a_run_that_fails_while_warming_up_is_told_once_its_neighbours_have_ended() -> None:
    log: list[tuple[str, FakeSlot]] = []
    pool = Pool("CPU", 4, partial(EndsWhenWaitedFor, log=log, fails=True), width=2)
    with pytest.raises(RunFailed, match="out of luck"):
        pool.run_all([X])
    assert [what for what, _ in log] == ["begun", "begun", "ended", "ended"]
    assert not any(slot.running for _, slot in log)


# -- closing -------------------------------------------------------------------------


def test_closing_ends_what_is_in_flight(kind: Kind) -> None:
    with real_pool(models.slow(), 3, kind) as pool:
        for slot in range(3):
            pool.start(slot, [[tensor(np.zeros((256, 256)))]])
        pool.close()
        assert pool.in_flight == 0


def test_closing_waits_for_a_device_that_ignores_cancel() -> None:
    fakes = Fakes(1, deaf=True)
    fakes.pool.start(0, [[X]])
    closing = threading.Thread(target=fakes.pool.close)
    closing.start()
    assert closing.is_alive()
    fakes.slots[0].complete()
    closing.join(10)
    assert not closing.is_alive()
    assert fakes.slots[0].cancels == 1


def test_closing_twice_is_harmless_and_the_pool_keeps_its_size() -> None:
    fakes = Fakes(2)
    fakes.pool.close()
    fakes.pool.close()
    assert fakes.pool.size == 2
    assert fakes.pool.sweep() == []


def test_a_closed_pool_and_its_infer_requests_are_freed(kind: Kind) -> None:
    # The callback that each infer request holds in C++ leads back to the pool.
    with real_pool(models.identity(), 2, kind) as pool:
        pool.run_all([X])
        freed = weakref.ref(pool)
    del pool
    gc.collect()
    assert freed() is None


# -- many runs -----------------------------------------------------------------------


def test_a_thousand_runs_of_which_many_fail_lose_no_slot(kind: Kind) -> None:
    dice = random.Random(1)
    with real_pool(models.broadcasting(), 4, kind) as pool:
        expected: dict[int, bool] = {}
        good = failed = 0

        def start(slot: int) -> None:
            expected[slot] = dice.random() < 0.5
            pool.start(slot, [[X, ONCE if expected[slot] else IMPOSSIBLE]])

        for slot in range(4):
            start(slot)
        started = 4
        while expected:
            for completion in pool.sweep():
                assert expected.pop(completion.slot) == (completion.failure is None)
                good += completion.failure is None
                failed += completion.failure is not None
                if started < 1000:
                    start(completion.slot)
                    started += 1
        assert good + failed == 1000
        assert min(good, failed) > 400
        assert pool.in_flight == 0
        pool.run_all([X, ONCE])


def test_every_answer_belongs_to_its_own_run(kind: Kind) -> None:
    with real_pool(models.identity(), 4, kind) as pool:
        wake = threading.Semaphore(0)
        pool.attach(wake.release)
        sent: dict[int, list[float]] = {}
        payloads = iter(np.random.default_rng(3).random((2000, 4), np.float32).tolist())

        def start(slot: int) -> None:
            if (payload := next(payloads, None)) is not None:
                sent[slot] = payload
                pool.start(slot, [[tensor(payload)]])

        for slot in range(4):
            start(slot)
        answered = 0
        while sent:
            assert wake.acquire(timeout=10)
            for completion in pool.drain():
                assert numbers(pool.read(completion.slot, [0])[0]).tolist() == sent.pop(completion.slot)
                answered += 1
                start(completion.slot)
        assert answered == 2000
