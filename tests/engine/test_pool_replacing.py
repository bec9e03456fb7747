"""A slot whose run does not end is replaced by another, within bounds, and its memory is not freed under the run."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from inferd.config.model import parse
from inferd.engine.model import _signature
from inferd.engine.pool import Completion, Pool
from inferd.engine.runtime import ov
from inferd.engine.slot import InferSlot
from inferd.engine.sync_slot import SyncSlot
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.engine.models import tensor

X = tensor([1, 2, 3, 4])
Kind = type[InferSlot] | type[SyncSlot]


class Deaf:
    """A pool of slots that ignore cancel. From the ``broken``-th on none can be made; with ``slow`` making them waits
    for that, once the first ``size`` are there."""

    def __init__(self, size: int, *, broken: int = 1000, slow: threading.Event | None = None) -> None:
        self.slots: list[FakeSlot] = []
        self.news = threading.Event()
        self._size, self._broken, self._slow = size, broken, slow
        self.pool = Pool("CPU", size, self._make)
        self.pool.attach(self.news.set)

    def _make(self, on_done: Callable[[], None]) -> FakeSlot:
        if len(self.slots) >= self._broken:
            raise RuntimeError("Exception from src/core.cpp:1:\nno memory on the device")
        if self._slow is not None and len(self.slots) >= self._size:
            self._slow.wait(10)
        self.slots.append(FakeSlot(on_done, deaf=True))
        return self.slots[-1]

    def hang(self, slot: int = 0) -> None:
        self.pool.start(slot, [[X]])
        self.pool.cancel(slot)

    def replaced(self, slot: int = 0) -> list[Completion]:
        """What the pool reports once another slot is in place, or can't be had."""
        assert self.pool.replace(slot)
        return self.reported()

    def reported(self) -> list[Completion]:
        assert self.news.wait(10)
        self.news.clear()
        return self.pool.drain()

    def end(self) -> None:
        for slot in self.slots:
            if slot.running:
                slot.complete()
        assert self.pool.close()
        assert all(slot.closed for slot in self.slots)


def test_a_slot_whose_run_does_not_end_is_replaced_and_reported_once() -> None:
    deaf = Deaf(2)
    deaf.hang(1)
    (completion,) = deaf.replaced(1)
    assert (completion.slot, completion.replaced, completion.failure) == (1, True, "the run was orphaned")
    assert (deaf.pool.in_flight, deaf.pool.orphaned, len(deaf.slots)) == (0, 1, 3)
    assert deaf.pool.sweep() == []

    deaf.pool.start(1, [[X]])
    assert deaf.slots[2].running
    deaf.end()


def test_asking_again_before_the_other_is_there_makes_no_second_one() -> None:
    slow = threading.Event()
    deaf = Deaf(1, slow=slow)
    deaf.hang()
    assert deaf.pool.replace(0)
    assert deaf.pool.replace(0)
    slow.set()
    assert len(deaf.reported()) == 1
    assert len(deaf.slots) == 2
    deaf.end()


def test_a_run_that_ends_after_it_was_left_behind_is_not_taken_for_the_next_one() -> None:
    deaf = Deaf(1)
    deaf.hang()
    deaf.replaced()
    deaf.pool.start(0, [[X]])
    deaf.slots[0].complete()
    assert deaf.pool.drain() == deaf.pool.sweep() == []
    assert (deaf.pool.in_flight, deaf.pool.orphaned) == (1, 0)

    deaf.slots[1].complete()
    assert [c.failure for c in deaf.pool.drain()] == [None]
    deaf.end()


def test_what_has_ended_after_all_replaces_the_next() -> None:
    deaf = Deaf(2)
    deaf.hang(0)
    deaf.replaced(0)
    deaf.slots[0].fail("Infer Request was canceled")
    assert deaf.pool.sweep() == []
    deaf.hang(1)
    assert [c.slot for c in deaf.replaced(1)] == [1]
    assert len(deaf.slots) == 3

    # It is at the second place now, and reports from there.
    deaf.pool.start(1, [[X]])
    assert deaf.slots[0].running
    deaf.slots[0].complete()
    assert [(c.slot, c.failure) for c in deaf.pool.drain()] == [(1, None)]
    deaf.end()


def test_a_run_that_ends_while_another_slot_is_made_keeps_its_own() -> None:
    slow = threading.Event()
    deaf = Deaf(1, slow=slow)
    deaf.hang()
    assert deaf.pool.replace(0)
    deaf.slots[0].complete()
    assert [c.replaced for c in deaf.pool.sweep()] == [False]
    deaf.news.clear()
    slow.set()
    assert deaf.reported() == []
    assert deaf.pool.orphaned == 0
    deaf.end()


def test_no_more_are_left_behind_than_there_are_slots() -> None:
    deaf = Deaf(2)
    for slot in (0, 1):
        deaf.hang(slot)
        deaf.replaced(slot)
    deaf.hang(0)
    assert not deaf.pool.replace(0)
    assert deaf.pool.wedged == {0: "2 hung infer requests were orphaned, the most allowed"}
    assert len(deaf.slots) == 4

    deaf.slots[2].complete()
    assert [c.slot for c in deaf.pool.sweep()] == [0]
    assert deaf.pool.wedged == {}
    deaf.end()


def test_a_slot_that_can_not_be_replaced_says_why() -> None:
    deaf = Deaf(1, broken=1)
    deaf.hang()
    assert deaf.replaced() == []
    assert not deaf.pool.replace(0)
    assert deaf.pool.wedged == {0: "a run hung, and its infer request could not be replaced: no memory on the device"}
    assert deaf.pool.in_flight == 1
    deaf.end()


def test_a_slot_that_takes_for_ever_to_be_made_counts_as_one_that_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd.engine.pool._MAKING_NS", 0)
    slow = threading.Event()
    deaf = Deaf(1, slow=slow)
    deaf.hang()
    deaf.pool.replace(0)
    assert not deaf.pool.replace(0)
    assert deaf.pool.wedged == {0: "a run hung, and so did replacing its infer request"}
    slow.set()
    assert [c.replaced for c in deaf.reported()] == [True]
    assert deaf.pool.wedged == {}
    deaf.end()


# -- closing ---------------------------------------------------------------------------


def test_a_pool_whose_run_does_not_end_is_freed_when_it_does_and_not_before() -> None:
    deaf = Deaf(2)
    deaf.hang(0)
    deaf.replaced(0)
    assert not deaf.pool.close(seconds=0.01)
    assert not deaf.pool.close()
    assert not deaf.pool.freed
    assert not any(slot.closed for slot in deaf.slots)

    deaf.slots[0].complete()
    for thread in [thread for thread in threading.enumerate() if thread.name == "inferd-hung"]:
        thread.join(10)
    assert deaf.pool.freed
    assert all(slot.closed for slot in deaf.slots)


def test_a_slot_that_is_made_when_its_pool_is_closed_is_closed_too() -> None:
    slow = threading.Event()
    deaf = Deaf(1, slow=slow)
    deaf.hang()
    deaf.pool.replace(0)
    deaf.slots[0].complete()
    assert deaf.pool.close()
    slow.set()
    for thread in [thread for thread in threading.enumerate() if thread.name == "inferd-replace"]:
        thread.join(10)
    assert [slot.closed for slot in deaf.slots] == [True, True]


def test_a_device_that_refuses_to_cancel_is_left_to_itself() -> None:
    class Gone(FakeSlot):
        def cancel(self) -> None:
            raise RuntimeError("the device is gone")

    made: list[Gone] = []
    pool = Pool("GPU", 1, lambda on_done: made.append(Gone(on_done)) or made[0])  # type: ignore[func-returns-value]
    pool.start(0, [[X]])
    pool.cancel(0)
    made[0].fail("the device is gone")
    assert [c.failure for c in pool.sweep()] == ["the device is gone"]
    assert pool.close()


# -- real infer requests ---------------------------------------------------------------


@contextmanager
def real_pool(kind: Kind) -> Iterator[Pool]:
    network = models.slow(400)
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
    signature = _signature(network, parse("", "m"))
    pool = Pool("CPU", 1, lambda on_done: kind(compiled.create_infer_request(), signature, on_done), model=compiled)
    try:
        yield pool
    finally:
        assert pool.close()


@pytest.mark.parametrize("kind", [InferSlot, SyncSlot])
def test_a_real_infer_request_is_replaced_while_it_runs(kind: Kind) -> None:
    wide = tensor(np.zeros((256, 256)))
    with real_pool(kind) as pool:
        news = threading.Event()
        pool.attach(news.set)
        pool.start(0, [[wide]])
        assert pool.replace(0)
        # The other can't be made before the stream is free (OpenVINO fact 35): then this run has ended, too.
        ended = []
        while not ended:
            assert news.wait(20)
            news.clear()
            ended = pool.drain()
        pool.start(0, [[wide]])
        while not (again := pool.sweep()):
            pass
        assert [c.slot for c in (*ended, *again)] == [0, 0]


def test_an_infer_request_is_not_made_while_the_only_stream_computes() -> None:
    compiled = ov.Core().compile_model(models.slow(2000), "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
    busy, made = compiled.create_infer_request(), threading.Event()
    idle_until = time.process_time()
    busy.start_async({0: np.zeros((256, 256), np.float32)})
    # A request made before the stream's thread wakes up may come first; CPU time used elsewhere shows that it is awake.
    while time.process_time() - idle_until < 0.02 and not made.wait(0.001):
        assert not busy.wait_for(0)
    making = threading.Thread(target=lambda: (compiled.create_infer_request(), made.set()))
    making.start()
    assert not made.wait(0.05)
    assert not busy.wait_for(0)
    busy.cancel()
    assert made.wait(30)
    making.join()
    with pytest.raises(RuntimeError, match="cancel"):
        busy.wait()
