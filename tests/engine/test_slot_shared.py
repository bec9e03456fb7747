"""A client's memory in place of a slot's own tensors, and back: no run reads or changes another client's data."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from inferd.config.model import parse
from inferd.engine.inline_slot import InlineSlot
from inferd.engine.model import _signature
from inferd.engine.runtime import ov
from inferd.engine.slot import InferSlot, RunFailed, Slot
from inferd.engine.sync_slot import SyncSlot
from inferd.tensors import DType, Placed, Tensor
from tests.engine import models
from tests.engine.models import numbers

op = models.op

SHAPE = (1, 3, 32, 32)
Kind = type[InferSlot] | type[SyncSlot] | type[InlineSlot]
KINDS: tuple[Kind, ...] = (InferSlot, SyncSlot, InlineSlot)


class Shared:
    """Memory as a mapped region gives it: ``in_place`` says whether it is used where it is."""

    def __init__(self, nbytes: int, *, in_place: bool) -> None:
        self.array = np.zeros(nbytes, np.uint8)
        self._in_place = in_place

    def read(self, at: int, target: memoryview) -> None:
        target[:] = self.array[at : at + len(target)].data

    def write(self, at: int, data: bytes | memoryview) -> None:
        self.array[at : at + memoryview(data).nbytes] = np.frombuffer(data, np.uint8)

    def view(self, at: int, nbytes: int) -> memoryview | None:
        return self.array[at : at + nbytes].data if self._in_place else None

    def place(self, at: int, nbytes: int) -> Placed:
        return Placed("r", at, nbytes, self)

    def put(self, at: int, array: "np.ndarray[Any, Any]") -> Tensor:
        """``array`` at ``at``, as an input that is there."""
        data = np.ascontiguousarray(array)
        self.write(at, data.tobytes())
        return Tensor(DType.FP32, data.shape, self.place(at, data.nbytes))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[True, False], ids=["in place", "copied"])
def in_place(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@contextmanager
def slots(network: ov.Model, kind: Kind, count: int = 1, device: str = "CPU", toml: str = "") -> Iterator[list[Slot]]:
    """So many on one stream, which they take turns at."""
    properties = {"NUM_STREAMS": 1} if device == "CPU" else {}
    compiled = ov.Core().compile_model(network, device, properties)
    signature = _signature(network, parse(toml, "m"))
    made = [kind(compiled.create_infer_request(), signature, lambda: None) for _ in range(count)]
    yield list(made)
    for slot in made:
        slot.close()


def finish(slot: Slot, outputs: Sequence[int] = (0,)) -> list[Tensor]:
    slot.start()
    slot.wait()
    return slot.read(outputs)


def values(seed: int, shape: Sequence[int] = SHAPE) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def two_outputs(shape: Sequence[int] = SHAPE) -> ov.Model:
    x = models.parameter(list(shape))
    return models.model({"up": op.relu(x), "down": op.relu(op.negative(x))}, [x])


def bytes_of(shape: Sequence[int]) -> int:
    return int(np.prod(shape)) * 4


@pytest.mark.parametrize("device", ["CPU", "AUTO:CPU"])
def test_an_input_is_taken_from_where_it_is(kind: Kind, in_place: bool, device: str) -> None:
    memory = Shared(1 << 20, in_place=in_place)
    x = values(1)
    with slots(two_outputs(), kind, device=device) as [slot]:
        slot.write_shared([memory.put(4096, x)], ())
        up, down = finish(slot, [0, 1])
        assert np.array_equal(numbers(up), np.maximum(x, 0))
        assert np.array_equal(numbers(down), np.maximum(-x, 0))
        slot.release()


@pytest.mark.parametrize("device", ["CPU", "AUTO:CPU"])
def test_an_output_is_computed_where_it_is_to_go_if_that_can_be(kind: Kind, in_place: bool, device: str) -> None:
    memory = Shared(1 << 20, in_place=in_place)
    x, nbytes = values(2), bytes_of(SHAPE)
    with slots(two_outputs(), kind, device=device) as [slot]:
        place = memory.place(8192, nbytes + 100)
        slot.write_shared([Tensor(DType.FP32, SHAPE, x.tobytes())], [(1, place)])
        up, down = finish(slot, [0, 1])
        assert np.array_equal(numbers(up), np.maximum(x, 0))
        assert (down.data is place) == in_place
        got = memory.array[8192 : 8192 + nbytes].view(np.float32) if in_place else numbers(down)
        assert np.array_equal(got.reshape(SHAPE), np.maximum(-x, 0))
        assert not memory.array[:8192].any()
        assert not memory.array[8192 + nbytes :].any()
        slot.release()


def test_an_output_that_does_not_fit_is_left_to_be_told_so(kind: Kind) -> None:
    memory = Shared(1 << 20, in_place=True)
    with slots(two_outputs(), kind) as [slot]:
        slot.write_shared([memory.put(0, values(3))], [(0, memory.place(65536, bytes_of(SHAPE) - 1))])
        (up,) = finish(slot)
        assert isinstance(up.data, memoryview)
        slot.release()
    assert not memory.array[65536:].any()


def test_an_output_that_hands_an_input_on_is_not_computed_elsewhere(kind: Kind) -> None:
    # Trap 36.
    x = models.parameter(list(SHAPE))
    network = ov.Model([op.result(x), op.result(op.relu(x))], [x], "hands on")
    memory, nbytes = Shared(1 << 20, in_place=True), bytes_of(SHAPE)
    with slots(network, kind) as [slot]:
        for seed in range(4):
            given = values(seed)
            slot.write_shared(
                [memory.put(0, given)], [(0, memory.place(65536, nbytes)), (1, memory.place(131072, nbytes))]
            )
            same, up = finish(slot, [0, 1])
            assert np.array_equal(numbers(same), given)
            assert isinstance(up.data, Placed)
            assert np.array_equal(
                memory.array[131072 : 131072 + nbytes].view(np.float32).reshape(SHAPE), np.maximum(given, 0)
            )
            slot.release()


def test_shapes_that_vary_and_memory_in_turns(kind: Kind, in_place: bool) -> None:
    memory = Shared(1 << 20, in_place=in_place)
    with slots(models.scaled(2.0, [-1, 8]), kind) as [slot]:
        for seed, rows in enumerate((3, 1, 3, 5, 5, 2, 1)):
            x = values(seed, (rows, 8))
            if seed % 3:
                slot.write_shared([memory.put(64 * seed, x)], [(0, memory.place(65536, 4096))])
            else:
                slot.write([[Tensor(DType.FP32, x.shape, x.tobytes())]])
            (answer,) = finish(slot)
            assert answer.shape == (rows, 8)
            assert np.array_equal(numbers(answer), 2 * x)
            slot.release()


def test_members_that_are_joined_are_copied_from_where_they_are(kind: Kind, in_place: bool) -> None:
    memory = Shared(1 << 20, in_place=in_place)
    parts = [values(n, (n, 8)) for n in (1, 3, 2)]
    inputs = [memory.put(0, parts[0]), Tensor(DType.FP32, (3, 8), parts[1].tobytes()), memory.put(4096, parts[2])]
    with slots(models.scaled(2.0, [-1, 8]), kind, toml="[batching]\nmax_size = 8") as [slot]:
        slot.write([[x] for x in inputs])
        (answer,) = finish(slot)
        assert np.array_equal(numbers(answer), 2 * np.concatenate(parts))


def test_words_without_a_numpy_type_and_scalars_pass(kind: Kind, in_place: bool) -> None:
    memory = Shared(4096, in_place=in_place)
    memory.write(0, bytes(range(8)))
    for network, dtype, shape in (
        (models.identity([2, 2], ov.Type.bf16), DType.BF16, (2, 2)),
        (models.identity([], ov.Type.i64), DType.INT64, ()),
    ):
        with slots(network, kind) as [slot]:
            slot.write_shared([Tensor(dtype, shape, memory.place(0, 8))], ())
            (answer,) = finish(slot)
            assert (answer.dtype, answer.shape, bytes(answer.data)) == (dtype, shape, bytes(range(8)))  # type: ignore[arg-type]
            slot.release()


def test_nothing_is_mixed_up_where_some_share_and_others_do_not(kind: Kind) -> None:
    """Slots of one stream, at random: own or a client's memory for the input and for each output."""
    nbytes = bytes_of(SHAPE)
    dice = np.random.default_rng(36)
    with slots(two_outputs(), kind, 3) as made:
        memories = [Shared(4 * nbytes, in_place=bool(n % 2)) for n in range(4)]
        for turn in range(200):
            slot, x = made[dice.integers(len(made))], values(turn)
            memory = memories[dice.integers(len(memories))]
            given = memory.put(0, x) if dice.integers(2) else Tensor(DType.FP32, SHAPE, x.tobytes())
            into = [(i, memory.place((1 + i) * nbytes, nbytes)) for i in range(2) if dice.integers(2)]
            before = [m.array.copy() for m in memories]
            if isinstance(given.data, Placed) or into:
                slot.write_shared([given], into)
            else:
                slot.write([[given]])
            answers = finish(slot, [0, 1])
            for place, (answer, wanted) in enumerate(zip(answers, (np.maximum(x, 0), np.maximum(-x, 0)), strict=True)):
                if isinstance(answer.data, Placed):
                    at = (1 + place) * nbytes
                    assert np.array_equal(memory.array[at : at + nbytes].view(np.float32).reshape(SHAPE), wanted)
                    # All else in it is as it was.
                    memory.array[at : at + nbytes] = before[memories.index(memory)][at : at + nbytes]
                else:
                    assert np.array_equal(numbers(answer), wanted)
            slot.release()
            for known, now in zip(before, memories, strict=True):
                assert np.array_equal(known, now.array)


def test_a_client_that_writes_after_its_answer_changes_no_other(kind: Kind) -> None:
    memory = Shared(1 << 20, in_place=True)
    x, y = values(1), values(2)
    with slots(two_outputs(), kind) as [slot]:
        slot.write_shared([memory.put(0, x)], [(0, memory.place(65536, bytes_of(SHAPE)))])
        finish(slot)
        slot.release()
        slot.write([[Tensor(DType.FP32, SHAPE, y.tobytes())]])
        memory.array[:] = 255
        (answer,) = finish(slot)
        assert np.array_equal(numbers(answer), np.maximum(y, 0))
    assert (memory.array == 255).all()


def test_the_same_memory_serves_models_and_shapes_in_turns(kind: Kind) -> None:
    """What was made to use it in place fits one type and shape alone."""
    memory = Shared(1 << 20, in_place=True)
    place, into = memory.place(0, 64), memory.place(4096, 128)
    with slots(models.scaled(2.0, [-1, 8]), kind) as [wide], slots(models.scaled(3.0, [-1, 4]), kind) as [narrow]:
        for seed in range(6):
            x = values(seed, (16,))
            memory.write(0, x.tobytes())
            slot, factor, shape = ((wide, 2, (2, 8)), (narrow, 3, (4, 4)))[seed // 2 % 2]
            slot.write_shared([Tensor(DType.FP32, shape, place)], [(0, into)])
            (answer,) = finish(slot)
            assert answer.shape == shape
            assert np.array_equal(numbers(answer).reshape(-1), factor * x)
            slot.release()
    x = values(7)
    place, into = memory.place(0, x.nbytes), memory.place(1 << 17, x.nbytes + 64)
    with slots(two_outputs(), kind, 2) as made:
        for slot, index in zip(2 * made, (0, 1, 1, 0), strict=True):
            memory.write(0, x.tobytes())
            slot.write_shared([Tensor(DType.FP32, SHAPE, place)], [(index, into)])
            finish(slot, [index])
            got = memory.array[1 << 17 : (1 << 17) + x.nbytes].view(np.float32).reshape(SHAPE)
            assert np.array_equal(got, np.maximum((-1) ** index * x, 0))
            slot.release()


def references(memory: Shared) -> int:
    return sys.getrefcount(memory.array)


def test_memory_is_let_go_of_with_what_says_where_it_is(kind: Kind) -> None:
    memory = Shared(1 << 20, in_place=True)
    before = references(memory)
    given = memory.put(0, values(1))
    with slots(two_outputs(), kind) as [slot]:
        for _ in range(2):
            slot.write_shared([given], ())
            finish(slot)
            slot.release()
        assert references(memory) > before
        del given
        assert references(memory) == before


def test_memory_is_let_go_of_when_it_is_given_back(kind: Kind) -> None:
    memory = Shared(1 << 20, in_place=True)
    before = references(memory)
    with slots(two_outputs(), kind) as [slot]:
        slot.write_shared([memory.put(0, values(1))], [(0, memory.place(65536, bytes_of(SHAPE)))])
        finish(slot)
        assert references(memory) > before
        slot.release()
        assert references(memory) == before


@pytest.mark.parametrize("kind", [InferSlot, SyncSlot])
def test_memory_can_be_given_back_after_a_run_that_was_cancelled(kind: Kind) -> None:
    memory = Shared(1 << 20, in_place=True)
    x = values(4, (256, 256))
    with slots(models.slow(), kind) as [slot]:
        slot.write_shared([memory.put(0, x)], [(0, memory.place(1 << 18, 1 << 18))])
        slot.start()
        slot.cancel()
        with pytest.raises(RunFailed, match="cancel"):
            slot.wait()
        slot.release()
        memory.array[:] = 0
        slot.write([[Tensor(DType.FP32, x.shape, bytes(x.nbytes))]])
        (answer,) = finish(slot)
        assert not numbers(answer).any()
    assert not memory.array.any()
