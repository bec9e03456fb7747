"""The contract of a Slot, for the fake and the real ones, and tests that only the real ones can pass."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Protocol

import numpy as np
import pytest

from inferd.config.model import parse
from inferd.engine.model import _signature
from inferd.engine.runtime import ov
from inferd.engine.slot import InferSlot, RunFailed, Slot, error_summary
from inferd.engine.sync_slot import SyncSlot
from inferd.errors import ResponseTooLarge
from inferd.tensors import DType, Tensor
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.engine.models import numbers, tensor

ONCE, IMPOSSIBLE = tensor([1, 4], DType.INT64), tensor([3, 2], DType.INT64)
WIDE = tensor(np.zeros((256, 256)))


class Calls:
    """What ``on_done`` saw: the thread of each call."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self) -> None:
        self.threads.append(threading.get_ident())


class Rig(Protocol):
    """A slot, and a way to begin runs of a known fate on it."""

    slot: Slot
    calls: Calls

    def begin_good(self, x: Tensor) -> None: ...

    def begin_bad(self) -> None: ...


class FakeRig:
    def __init__(self) -> None:
        self.calls = Calls()
        self.slot = self.fake = FakeSlot(self.calls)

    def begin_good(self, x: Tensor) -> None:
        self.slot.write([[x]])
        self.slot.start()
        self.fake.complete()

    def begin_bad(self) -> None:
        self.slot.write([[tensor([1, 2, 3, 4])]])
        self.slot.start()
        self.fake.fail("Input shape dimension equal 4 cannot be broadcasted (numpy mode) to 2.")


class RealRig:
    """On a model that fails depending on its data."""

    def __init__(self, slot: Slot, calls: Calls) -> None:
        self.slot = slot
        self.calls = calls

    def begin_good(self, x: Tensor) -> None:
        self.slot.write([[x, ONCE]])
        self.slot.start()

    def begin_bad(self) -> None:
        self.slot.write([[tensor([1, 2, 3, 4]), IMPOSSIBLE]])
        self.slot.start()


Kind = type[InferSlot] | type[SyncSlot]
KINDS = (InferSlot, SyncSlot)
REAL = [(kind, device) for kind in KINDS for device in ("CPU", "AUTO:CPU")]


@contextmanager
def real_slot(
    network: ov.Model, on_done: Callable[[], None], kind: Kind = InferSlot, device: str = "CPU"
) -> Iterator[InferSlot | SyncSlot]:
    with slot_of(network, compiled(network, device), on_done, kind) as slot:
        yield slot


def compiled(network: ov.Model, device: str = "CPU") -> ov.CompiledModel:
    return ov.Core().compile_model(network, device, {"PERFORMANCE_HINT": "LATENCY"})


@cache
def long_model() -> tuple[ov.Model, ov.CompiledModel]:
    """To be run by many tests: compiling it takes more than a second."""
    return (network := models.slow(1000)), compiled(network)


@contextmanager
def slot_of(
    network: ov.Model, compiled: ov.CompiledModel, on_done: Callable[[], None], kind: Kind
) -> Iterator[InferSlot | SyncSlot]:
    slot = kind(compiled.create_infer_request(), _signature(network, parse("", "m")), on_done)
    yield slot
    slot.close()


@pytest.fixture(params=["fake", *REAL], ids=str)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        yield FakeRig()
        return
    calls = Calls()
    with real_slot(models.broadcasting(), calls, *request.param) as slot:
        yield RealRig(slot, calls)


@pytest.fixture(params=["fake", *KINDS])
def long_run(request: pytest.FixtureRequest) -> Iterator[tuple[Slot, Calls]]:
    """A slot with a run in flight that would take a while."""
    calls = Calls()
    fake = request.param == "fake"
    with nullcontext(FakeSlot(calls)) if fake else slot_of(*long_model(), calls, request.param) as slot:
        slot.write([[WIDE]])
        slot.start()
        yield slot, calls


def test_success_is_told_once_and_on_another_thread(rig: Rig) -> None:
    rig.begin_good(tensor([1, 2, 3, 4]))
    rig.slot.wait()

    assert len(rig.calls.threads) == 1
    assert rig.calls.threads[0] != threading.get_ident()
    assert rig.slot.poll()


def test_a_run_is_not_over_for_poll_before_its_callback_has_returned(rig: Rig) -> None:
    # The pool relies on it: a hand-over can't come after the slot's next start.
    for runs in range(1, 30):
        rig.begin_good(tensor([1, 2, 3, 4]))
        while not rig.slot.poll():
            pass
        assert len(rig.calls.threads) == runs


def test_waiting_ends_when_the_run_does_or_the_time_is_over(rig: Rig, long_run: tuple[Slot, Calls]) -> None:
    rig.begin_good(tensor([1, 2, 3, 4]))
    assert rig.slot.wait(30.0)
    slot, _ = long_run
    assert not slot.wait(0.001)
    slot.cancel()
    with pytest.raises(RunFailed, match="cancel"):
        slot.wait(30.0)


def test_failure_is_told_by_poll_and_wait_and_by_no_callback(rig: Rig) -> None:
    rig.begin_bad()

    with pytest.raises(RunFailed, match="4 cannot be broadcasted"):
        rig.slot.wait()
    with pytest.raises(RunFailed, match="cannot be broadcasted"):
        rig.slot.poll()
    assert rig.calls.threads == []


def test_the_sentence_of_a_failure_names_no_source_file(rig: Rig) -> None:
    rig.begin_bad()

    with pytest.raises(RunFailed) as failure:
        rig.slot.wait()
    assert "\n" not in str(failure.value)
    assert ".cpp" not in str(failure.value)
    assert "Exception from" not in str(failure.value)


def test_outputs_of_more_bytes_than_may_be_are_not_read_and_the_next_run_is_as_any(rig: Rig) -> None:
    for _ in range(2):
        rig.begin_good(tensor([1, 2, 3, 4]))
        rig.slot.wait()
        with pytest.raises(ResponseTooLarge, match="the response has 16 bytes; at most 15 are allowed"):
            rig.slot.read([0], None, 15)
        # Another part of a batch may be small enough.
        assert numbers(rig.slot.read([0], None, 16)[0]).ravel().tolist() == [1, 2, 3, 4]


def test_a_slot_works_again_after_a_failure(rig: Rig) -> None:
    rig.begin_bad()
    with pytest.raises(RunFailed):
        rig.slot.wait()

    rig.begin_good(tensor([4, 3, 2, 1]))
    rig.slot.wait()

    assert len(rig.calls.threads) == 1
    assert numbers(rig.slot.read([0])[0]).ravel().tolist() == [4, 3, 2, 1]


def test_each_run_is_answered_with_its_own_values(rig: Rig) -> None:
    for n in range(20):
        rig.begin_good(tensor([n, n + 1, n + 2, n + 3]))
        rig.slot.wait()
        assert numbers(rig.slot.read([0])[0]).ravel().tolist() == [n, n + 1, n + 2, n + 3]


def test_a_written_input_is_a_copy(rig: Rig) -> None:
    buffer = bytearray(np.arange(4, dtype=np.float32).tobytes())
    given = Tensor(DType.FP32, (4,), memoryview(buffer))

    rig.slot.write([[given] if isinstance(rig, FakeRig) else [given, ONCE]])
    buffer[:] = bytes(len(buffer))
    rig.slot.start()
    if isinstance(rig, FakeRig):
        rig.fake.complete()
    rig.slot.wait()

    assert numbers(rig.slot.read([0])[0]).ravel().tolist() == [0, 1, 2, 3]


def test_a_cancelled_run_ends_by_poll_raising_and_by_no_callback(long_run: tuple[Slot, Calls]) -> None:
    slot, calls = long_run
    slot.cancel()

    with pytest.raises(RunFailed, match="cancel"):
        slot.wait()
    with pytest.raises(RunFailed, match="cancel"):
        slot.poll()
    assert calls.threads == []


@pytest.mark.parametrize("kind", [FakeSlot, InferSlot])
def test_a_device_that_ignores_cancel_ends_the_run_well(kind: type) -> None:
    # AUTO does not pass cancel on. On a thread of our own it is told in test_sync_slot.py.
    calls = Calls()
    deaf = FakeSlot(calls, deaf=True)
    with nullcontext(deaf) if kind is FakeSlot else real_slot(models.slow(), calls, device="AUTO:CPU") as slot:
        slot.write([[WIDE]])
        slot.start()
        slot.cancel()
        if slot is deaf:
            deaf.complete()
        slot.wait()

        assert slot.poll()
    assert len(calls.threads) == 1


def test_poll_does_not_wait_for_a_run(long_run: tuple[Slot, Calls]) -> None:
    slot, _ = long_run
    assert not slot.poll()
    slot.cancel()
    with pytest.raises(RunFailed):
        slot.wait()


def test_a_slot_works_again_after_a_cancel(long_run: tuple[Slot, Calls]) -> None:
    slot, calls = long_run
    slot.cancel()
    with pytest.raises(RunFailed):
        slot.wait()

    slot.write([[WIDE]])
    slot.start()
    if isinstance(slot, FakeSlot):
        slot.complete()
    slot.wait()

    assert len(calls.threads) == 1


def test_a_slot_can_not_be_started_while_it_runs(long_run: tuple[Slot, Calls]) -> None:
    slot, _ = long_run
    with pytest.raises(RunFailed, match="busy"):
        slot.start()
    slot.cancel()
    with pytest.raises(RunFailed):
        slot.wait()


def test_cancelling_a_slot_that_has_ended_changes_nothing(rig: Rig) -> None:
    rig.begin_good(tensor([1, 2, 3, 4]))
    rig.slot.wait()
    rig.slot.cancel()

    assert rig.slot.poll()
    assert numbers(rig.slot.read([0])[0]).ravel().tolist() == [1, 2, 3, 4]

    rig.begin_good(tensor([5, 6, 7, 8]))
    rig.slot.wait()
    assert numbers(rig.slot.read([0])[0]).ravel().tolist() == [5, 6, 7, 8]


# -- the real ones alone -------------------------------------------------------------


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def run(slot: Slot, *inputs: Tensor) -> Tensor:
    slot.write([inputs])
    slot.start()
    slot.wait()
    return slot.read([0])[0]


def test_the_shape_may_change_from_run_to_run(kind: Kind) -> None:
    with real_slot(models.identity([-1, 2]), Calls(), kind) as slot:
        for rows in (3, 1, 5, 5, 2):
            values = np.arange(rows * 2).reshape(rows, 2)
            answer = run(slot, tensor(values))
            assert answer.shape == (rows, 2)
            assert np.array_equal(numbers(answer), values)


def test_a_tensor_without_elements_passes(kind: Kind) -> None:
    with real_slot(models.identity([-1, 2]), Calls(), kind) as slot:
        assert run(slot, tensor(np.zeros((0, 2)))).shape == (0, 2)


def test_strings_may_be_none_at_all(kind: Kind) -> None:
    # Trap 31.
    with real_slot(models.identity([-1], ov.Type.string), Calls(), kind) as slot:
        assert run(slot, Tensor(DType.BYTES, (0,), [])) == Tensor(DType.BYTES, (0,), [])


@pytest.mark.parametrize("strings", [[b"a", b"", b"longer than the others"], ["ä€".encode(), b"\xff\xfe", b"a\0b"]])
def test_strings_of_any_length_and_content_pass(strings: list[bytes], kind: Kind) -> None:
    with real_slot(models.identity([-1], ov.Type.string), Calls(), kind) as slot:
        answer = run(slot, Tensor(DType.BYTES, (len(strings),), strings))
        assert answer == Tensor(DType.BYTES, (len(strings),), strings)


def test_outputs_come_in_the_order_asked_for(kind: Kind) -> None:
    x = models.parameter([2])
    network = models.model({"same": x, "negative": models.op.negative(x)}, [x])
    with real_slot(network, Calls(), kind) as slot:
        run(slot, tensor([1, 2]))
        assert [numbers(t).tolist() for t in slot.read([1, 0, 1])] == [[-1, -2], [1, 2], [-1, -2]]


def test_input_of_the_wrong_size_is_refused_and_the_slot_works_on(kind: Kind) -> None:
    with real_slot(models.identity([4]), Calls(), kind) as slot:
        with pytest.raises(ValueError, match="different structures"):
            slot.write([[Tensor(DType.FP32, (4,), bytes(15))]])
        assert numbers(run(slot, tensor([1, 2, 3, 4]))).tolist() == [1, 2, 3, 4]


def test_closing_waits_until_the_device_holds_nothing_of_it(kind: Kind) -> None:
    # Freeing the compiled model before would join, with the GIL held, a thread that needs the GIL.
    network = models.slow()
    compiled = ov.Core().compile_model(network, "CPU")
    for _ in range(20):
        calls = Calls()
        held = weakref.ref(calls)
        slot = kind(compiled.create_infer_request(), _signature(network, parse("", "m")), calls)
        slot.write([[WIDE]])
        slot.start()
        slot.cancel()
        with pytest.raises(RunFailed):
            slot.wait()
        del calls
        slot.close()
        assert held() is None


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("no such file", "no such file"),
        ("Exception from src/a/b.cpp:12:\nCheck 'x' failed at src/c.hpp:7:\ntoo large\n\n", "too large"),
        ("Exception from src/a.cpp:1:\nCaught exception: Exception from src/b.cpp:2:\n[CPU] lost", "[CPU] lost"),
        ("Exception from src/a.cpp:1:\n", "RuntimeError"),
        ("", "RuntimeError"),
    ],
)
def test_a_sentence_is_what_was_wrong_without_where_it_was_raised(raised: str, said: str) -> None:
    assert error_summary(RuntimeError(raised)) == said


def test_a_sentence_is_one_line_of_bounded_length() -> None:
    said = error_summary(RuntimeError("a\tb\x1b[31m" + "x" * 1000))
    assert said.isprintable()
    assert len(said) == 300
