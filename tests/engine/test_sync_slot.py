"""Tests of the slot with its own thread; the contract that all slots share is in test_slot.py."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from inferd.config.model import parse
from inferd.engine.model import _signature
from inferd.engine.runtime import ov
from inferd.engine.slot import RunFailed
from inferd.engine.sync_slot import SyncSlot
from tests.engine import models
from tests.engine.models import numbers, tensor

X = tensor([1, 2, 3, 4])
WIDE = tensor(np.zeros((2048, 1024)))


def seconds_long() -> ov.Model:
    """Few products that take long, as compiling many takes longer than running them."""
    x = models.parameter([2048, 1024])
    node, weights = x, models.op.constant(np.full((1024, 1024), 1 / 1024, np.float32))
    for _ in range(60):
        node = models.op.matmul(node, weights, False, False)
    return models.model({"y": node}, [x])


class Hesitant:
    """An infer request that stops before it begins to compute, until it may ``go``."""

    def __init__(self, request: "ov.InferRequest") -> None:
        self.asked = threading.Event()
        self.go = threading.Event()
        self._request = request

    def infer(self, **options: Any) -> None:
        self.asked.set()
        assert self.go.wait(60)
        self._request.infer(**options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


class Raising(Hesitant):
    """An infer request that raises what OpenVINO does not raise, once."""

    def __init__(self, request: "ov.InferRequest", error: Exception) -> None:
        super().__init__(request)
        self.error: Exception | None = error

    def infer(self, **options: Any) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self._request.infer(**options)


@contextmanager
def slot_on(
    network: ov.Model, on_done: Callable[[], None] = lambda: None, wrap: Callable[[Any], Any] = lambda request: request
) -> Iterator[tuple[SyncSlot, Any]]:
    """A slot, and the infer request it was given."""
    request = wrap(ov.Core().compile_model(network, "CPU").create_infer_request())
    slot = SyncSlot(request, _signature(network, parse("", "m")), on_done)
    yield slot, request
    slot.close()


def poll_until_ended(slot: SyncSlot) -> None:
    while not slot.poll():
        pass


def run(slot: SyncSlot) -> None:
    slot.write([[X]])
    slot.start()
    slot.wait()


# -- threads -------------------------------------------------------------------------


def slot_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "inferd-slot"}


def test_all_runs_of_a_slot_are_computed_on_its_one_thread() -> None:
    seen: list[threading.Thread] = []
    with slot_on(models.identity(), lambda: seen.append(threading.current_thread())) as (slot, _):
        for _ in range(20):
            run(slot)
        assert set(seen) <= slot_threads()
    assert len(seen) == 20
    assert len(set(seen)) == 1


def test_closing_ends_the_thread() -> None:
    before = slot_threads()
    with slot_on(models.identity()) as (slot, _):
        run(slot)
        (thread,) = slot_threads() - before
    assert not thread.is_alive()


# -- cancelling ----------------------------------------------------------------------


def test_a_run_is_cancelled_while_it_computes() -> None:
    # If the run held the GIL, no thread could cancel it during the seconds that it takes.
    done: list[None] = []
    with slot_on(seconds_long(), lambda: done.append(None), Hesitant) as (slot, request):
        request.go.set()
        slot.write([[WIDE]])
        slot.start()
        assert request.asked.wait(60)
        assert not slot.poll()
        slot.cancel()
        with pytest.raises(RunFailed, match="cancel"):
            slot.wait()
    assert done == []


@pytest.mark.parametrize("noticed_by", ["poll", "wait"])
def test_a_cancel_that_comes_before_the_run_computes_is_not_lost(noticed_by: str) -> None:
    with slot_on(seconds_long(), wrap=Hesitant) as (slot, request):
        slot.write([[WIDE]])
        slot.start()
        assert request.asked.wait(60)
        slot.cancel()
        request.go.set()
        with pytest.raises(RunFailed, match="cancel"):
            slot.wait() if noticed_by == "wait" else poll_until_ended(slot)


def test_a_run_cancelled_before_its_thread_has_seen_it_is_not_computed() -> None:
    held, returned = threading.Event(), threading.Event()

    def hand_over() -> None:
        held.set()
        assert returned.wait(60)

    with slot_on(models.identity(), hand_over, Hesitant) as (slot, request):
        request.go.set()
        slot.write([[X]])
        slot.start()
        assert held.wait(60)
        request.asked.clear()
        slot.start()
        slot.cancel()
        returned.set()
        with pytest.raises(RunFailed, match="cancel"):
            slot.wait()
        assert not request.asked.is_set()


def test_a_cancel_does_not_reach_the_next_run() -> None:
    with slot_on(models.identity()) as (slot, _):
        for _ in range(200):
            slot.write([[X]])
            slot.start()
            slot.cancel()
            with suppress(RunFailed):
                slot.wait()
            run(slot)


# -- handing over --------------------------------------------------------------------


def test_the_next_run_may_be_started_while_the_hand_over_of_the_last_returns() -> None:
    # The loop wakes up in the middle of it, and is to find the slot free.
    held, returned = threading.Event(), threading.Event()

    def hand_over() -> None:
        held.set()
        assert returned.wait(60)

    with slot_on(models.identity(), hand_over) as (slot, _):
        slot.write([[X]])
        slot.start()
        assert held.wait(60)
        assert numbers(slot.read([0])[0]).tolist() == [1, 2, 3, 4]
        slot.write([[tensor([5, 6, 7, 8])]])
        slot.start()
        assert not slot.poll()
        returned.set()
        slot.wait()
        assert numbers(slot.read([0])[0]).tolist() == [5, 6, 7, 8]


def test_a_run_may_be_started_from_the_hand_over() -> None:
    left, slots, done = [9], list[SyncSlot](), threading.Event()

    def hand_over() -> None:
        if not left[0]:
            done.set()
            return
        left[0] -= 1
        slots[0].start()

    with slot_on(models.identity(), hand_over) as (slot, _):
        slots.append(slot)
        slot.write([[X]])
        slot.start()
        assert done.wait(60)
        slot.wait()


def test_a_hand_over_that_raises_loses_neither_run_nor_thread() -> None:
    def hand_over() -> None:
        raise ValueError("no listener")

    with slot_on(models.identity(), hand_over) as (slot, _):
        for _ in range(2):
            with capture_logs() as logged:
                run(slot)
            assert slot.poll()
            assert [entry["event"] for entry in logged] == ["hand-over callback raised an exception"]


@pytest.mark.parametrize("error", [MemoryError(), TypeError("data type not understood")])
def test_whatever_a_run_raises_is_its_failure_and_the_thread_lives_on(error: Exception) -> None:
    done: list[None] = []
    with slot_on(models.identity(), lambda: done.append(None), lambda r: Raising(r, error)) as (slot, _):
        with capture_logs() as logged, pytest.raises(RunFailed, match=str(error) or "MemoryError"):
            run(slot)
        assert [entry["event"] for entry in logged] == ["run raised an unexpected exception"]
        run(slot)
    assert len(done) == 1
