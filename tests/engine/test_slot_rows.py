"""Several members of one run: their rows lie side by side and come back one by one, in the fake as in real slots."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from inferd.config.model import parse
from inferd.engine.model import _signature
from inferd.engine.ports import joined_shape
from inferd.engine.runtime import ov
from inferd.engine.slot import InferSlot, Slot
from inferd.engine.sync_slot import SyncSlot
from inferd.tensors import DType, Tensor
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.engine.models import numbers, tensor

BATCHED = "[batching]\nmax_size = 64"
# The tensor x has its rows in the second dimension.
SECOND_AXIS = BATCHED + "\n[sequences.state.x]\noutput = 'x'\nbatch_axis = 1"

Echo = Callable[[list[int], Any], Slot]


KINDS = (InferSlot, SyncSlot)
Kind = type[InferSlot] | type[SyncSlot]


@contextmanager
def real_slot(
    network: ov.Model, toml: str = BATCHED, kind: Kind = InferSlot, device: str = "CPU"
) -> Iterator[InferSlot | SyncSlot]:
    compiled = ov.Core().compile_model(network, device)
    slot = kind(compiled.create_infer_request(), _signature(network, parse(toml, "m")), lambda: None)
    yield slot
    slot.close()


@pytest.fixture(params=["fake", *((kind, device) for kind in KINDS for device in ("CPU", "AUTO:CPU"))], ids=str)
def echo(request: pytest.FixtureRequest) -> Iterator[Echo]:
    """Makes slots that give back what they get, by the shape and the type of it."""
    with ExitStack() as slots:

        def make(shape: list[int], dtype: Any) -> Slot:
            if request.param == "fake":
                return FakeSlot(lambda: None)
            return slots.enter_context(real_slot(models.identity(shape, dtype), BATCHED, *request.param))

        yield make


def run(slot: Slot, members: Sequence[Sequence[Tensor]]) -> None:
    slot.write(members)
    slot.start()
    if isinstance(slot, FakeSlot):
        slot.complete()
    slot.wait()


def members_of(rows: Sequence[int], shape: Callable[[int], tuple[int, ...]]) -> "list[np.ndarray[Any, Any]]":
    dice = np.random.default_rng(5)
    return [dice.random(shape(n), np.float32) for n in rows]


def ranges(rows: Sequence[int]) -> list[range]:
    """Where each member's rows are, when members have so many ``rows``."""
    ends = np.cumsum(rows).tolist()
    return [range(end - n, end) for end, n in zip(ends, rows, strict=True)]


def test_members_lie_side_by_side_in_their_order(echo: Echo) -> None:
    slot = echo([-1, 3], ov.Type.f32)
    for rows in ((1, 1), (2, 1, 4), (1,) * 8, (7, 1)):
        given = members_of(rows, lambda n: (n, 3))
        run(slot, [[tensor(x)] for x in given])
        (whole,) = slot.read([0])
        assert np.array_equal(numbers(whole), np.concatenate(given))


def test_each_member_gets_its_own_rows_back(echo: Echo) -> None:
    slot = echo([-1, 2, 2], ov.Type.f32)
    rows = (1, 3, 2)
    given = members_of(rows, lambda n: (n, 2, 2))
    run(slot, [[tensor(x)] for x in given])
    for part, x in zip(ranges(rows), given, strict=True):
        (answer,) = slot.read([0], part)
        assert answer.shape == x.shape
        assert np.array_equal(numbers(answer), x)


def test_strings_are_joined_and_parted_alike(echo: Echo) -> None:
    slot = echo([-1, 2], ov.Type.string)
    run(
        slot,
        [
            [Tensor(DType.BYTES, (1, 2), [b"a", b""])],
            [Tensor(DType.BYTES, (2, 2), [b"longer than all others", b"\xff\xfe", "ä€".encode(), b"d"])],
        ],
    )
    assert slot.read([0], range(1)) == [Tensor(DType.BYTES, (1, 2), [b"a", b""])]
    assert slot.read([0], range(2, 3)) == [Tensor(DType.BYTES, (1, 2), ["ä€".encode(), b"d"])]


def test_words_without_a_numpy_type_are_joined_bit_by_bit(echo: Echo) -> None:
    slot = echo([-1, 2], ov.Type.bf16)
    one, two = (Tensor(DType.BF16, (n, 2), bytes(range(17 * n, 21 * n))) for n in (1, 2))
    run(slot, [[one], [two]])
    for part, member in ((range(1), one), (range(1, 3), two)):
        (answer,) = slot.read([0], part)
        assert (answer.dtype, answer.shape) == (DType.BF16, member.shape)
        assert bytes(answer.data) == member.data  # type: ignore[arg-type]


def test_members_without_elements_can_be_joined(echo: Echo) -> None:
    slot = echo([-1, -1], ov.Type.f32)
    run(slot, [[tensor(np.zeros((1, 0)))], [tensor(np.zeros((2, 0)))]])
    (answer,) = slot.read([0], range(1, 3))
    assert (answer.shape, bytes(answer.data)) == ((2, 0), b"")  # type: ignore[arg-type]


def test_members_without_strings_can_be_joined(echo: Echo) -> None:
    slot = echo([-1, -1], ov.Type.string)
    run(slot, [[Tensor(DType.BYTES, (1, 0), [])], [Tensor(DType.BYTES, (2, 0), [])]])
    assert slot.read([0], range(1, 3)) == [Tensor(DType.BYTES, (2, 0), [])]


def test_a_run_of_one_after_one_of_several_holds_nothing_of_them(echo: Echo) -> None:
    slot = echo([-1, 2], ov.Type.f32)
    run(slot, [[tensor([[1, 2]])], [tensor([[3, 4]])]])
    run(slot, [[tensor([[5, 6]])]])
    (answer,) = slot.read([0])
    assert numbers(answer).tolist() == [[5, 6]]


def test_joined_inputs_are_copies(echo: Echo) -> None:
    slot = echo([-1, 2], ov.Type.f32)
    buffer = bytearray(np.array([[1, 2]], np.float32).tobytes())
    slot.write([[Tensor(DType.FP32, (1, 2), memoryview(buffer))], [tensor([[3, 4]])]])
    buffer[:] = bytes(len(buffer))
    slot.start()
    if isinstance(slot, FakeSlot):
        slot.complete()
    slot.wait()
    assert numbers(slot.read([0])[0]).tolist() == [[1, 2], [3, 4]]


# -- the real ones alone -------------------------------------------------------------


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def test_every_input_is_joined_along_the_batch_axis_of_its_own(kind: Kind) -> None:
    toml = BATCHED + "\n[sequences.state.state]\noutput = 'next'\nbatch_axis = 1"
    rows = (1, 2, 1, 3)
    xs, states = members_of(rows, lambda n: (n, 1)), members_of(rows, lambda n: (2, n, 1))
    with real_slot(models.accumulator(), toml, kind) as slot:
        run(slot, [[tensor(x), tensor(state)] for x, state in zip(xs, states, strict=True)])
        for part, x, state in zip(ranges(rows), xs, states, strict=True):
            y, following = map(numbers, slot.read([0, 1], part))
            assert np.array_equal(following, state + x)
            assert np.array_equal(y, following[0])


def test_rows_of_another_axis_are_not_contiguous_and_tell_their_bytes_in_order(kind: Kind) -> None:
    rows = (1, 3, 2)
    given = members_of(rows, lambda n: (2, n, 128))
    with real_slot(models.identity([2, -1, 128]), SECOND_AXIS, kind) as slot:
        run(slot, [[tensor(x)] for x in given])
        for part, x in zip(ranges(rows), given, strict=True):
            (answer,) = slot.read([0], part)
            assert isinstance(answer.data, memoryview)
            assert not answer.data.contiguous
            assert answer.shape == x.shape
            assert answer.data.tobytes() == x.tobytes()


def test_a_batch_of_one_shape_after_another_fits_each_time(kind: Kind) -> None:
    with real_slot(models.identity([2, -1, 3]), SECOND_AXIS, kind) as slot:
        for rows in ((1, 1), (4,), (2, 3, 1), (1,), (1, 5)):
            given = members_of(rows, lambda n: (2, n, 3))
            run(slot, [[tensor(x)] for x in given])
            assert np.array_equal(numbers(slot.read([0])[0]), np.concatenate(given, axis=1))


@pytest.mark.parametrize(
    ("shapes", "axis", "joined"),
    [
        ([(3, 4)], 0, (3, 4)),
        ([()], 0, ()),
        ([(1, 4), (2, 4)], 0, (3, 4)),
        ([(2, 1, 4), (2, 5, 4)], 1, (2, 6, 4)),
        ([(2, 1), (2, 1)], 1, (2, 2)),
    ],
)
def test_only_the_batch_axis_of_a_shape_adds_up(
    shapes: list[tuple[int, ...]], axis: int, joined: tuple[int, ...]
) -> None:
    assert joined_shape(shapes, axis) == joined


def test_reset_takes_a_stateful_model_back_to_its_beginning(kind: Kind) -> None:
    x = tensor([[3, 4]])
    with real_slot(models.stateful(), "", kind) as slot:
        seen = []
        for again in (False, False, True, False):
            if again:
                slot.reset()
            run(slot, [[x]])
            seen.append(numbers(slot.read([0])[0]).tolist())
    # It starts from its first input, and then adds each.
    assert seen == [[[6, 8]], [[9, 12]], [[6, 8]], [[9, 12]]]


def test_reset_does_no_harm_where_a_model_keeps_nothing(kind: Kind) -> None:
    with real_slot(models.identity([-1, 2]), kind=kind) as slot:
        slot.reset()
        run(slot, [[tensor([[1, 2]])]])
        assert numbers(slot.read([0])[0]).tolist() == [[1, 2]]
