"""Models with state: model.toml is checked against the model, and a model's own state against the pool."""

from pathlib import Path

import numpy as np
import pytest

from inferd.engine.model import LoadedModel
from inferd.engine.runtime import ov
from inferd.engine.state import most_sequences
from inferd.errors import ConfigurationError
from inferd.tensors import DType, Signature
from tests.engine import models
from tests.engine.models import numbers, op, parameter

BATCHED = "[batching]\nmax_size = 8\n"
LINK = "[sequences.state.state]\noutput = 'next'\n"


def load(network: ov.Model, folder: Path, toml: str) -> LoadedModel:
    return models.engine().load(models.source(models.save(network, folder), toml))


def inspect(network: ov.Model, folder: Path, toml: str) -> Signature:
    return models.engine().inspect(models.source(models.save(network, folder), toml))


def refusal(network: ov.Model, folder: Path, toml: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        inspect(network, folder, toml)
    return str(refused.value)


def counter(dtype: ov.Type = ov.Type.f32, into: ov.Type | None = None) -> ov.Model:
    """``x`` and ``state`` -> ``next``, both [1,4], of types that may differ."""
    x, state = parameter([1, 4], dtype), parameter([1, 4], dtype, name="state")
    total = op.logical_or(x, state) if dtype is ov.Type.boolean else op.add(x, state)
    return models.model({"next": op.convert(total, into) if into else total}, [x, state])


# -- state that the server carries ---------------------------------------------------


def test_declared_state_is_linked_with_its_initial_value_and_batch_axis(tmp_path: Path) -> None:
    signature = load(models.accumulator(), tmp_path, BATCHED + LINK + "initial = 2.0\nbatch_axis = 1").signature
    (link,) = signature.states
    assert (signature.inputs[link.input].name, signature.outputs[link.output].name) == ("state", "next")
    assert numbers(link.initial).tolist() == [[[2.0]], [[2.0]]]
    assert [s.describe() for s in (*signature.inputs, *signature.outputs)] == [
        "[1..8,1]",
        "[2,1..8,1]",
        "[1..8,1]",
        "[2,1..8,1]",
    ]
    assert [s.name for s in signature.shown_inputs] == ["x"]
    assert [s.name for s in signature.shown_outputs] == ["y"]
    assert signature.in_sequences
    assert not signature.stateful


def test_a_state_needs_no_batch(tmp_path: Path) -> None:
    signature = inspect(counter(), tmp_path, LINK)
    (link,) = signature.states
    assert (signature.max_batch, link.initial.shape) == (0, (1, 4))
    assert numbers(link.initial).tolist() == [[0.0] * 4]


@pytest.mark.parametrize(
    ("type_name", "dtype", "initial", "expected"),
    [
        ("f32", DType.FP32, "-0.5", np.full(4, -0.5, np.float32).tobytes()),
        ("f16", DType.FP16, "0.25", np.full(4, 0.25, np.float16).tobytes()),
        # The upper half of the float32 1.5.
        ("bf16", DType.BF16, "1.5", b"\xc0\x3f" * 4),
        ("i64", DType.INT64, "-3.0", np.full(4, -3, np.int64).tobytes()),
        ("u8", DType.UINT8, "255.0", b"\xff" * 4),
        ("boolean", DType.BOOL, "1.0", b"\x01" * 4),
    ],
)
def test_a_sequence_begins_with_the_initial_value_in_the_state_s_own_type(
    type_name: str, dtype: DType, initial: str, expected: bytes, tmp_path: Path
) -> None:
    network = counter(getattr(ov.Type, type_name))
    (link,) = inspect(network, tmp_path, LINK + f"initial = {initial}").states
    assert (link.initial.dtype, link.initial.data) == (dtype, expected)


@pytest.mark.parametrize(
    ("type_name", "initial", "wire"),
    [
        ("u8", "256.0", "UINT8"),
        ("u8", "-1.0", "UINT8"),
        ("i32", "0.5", "INT32"),
        ("boolean", "2.0", "BOOL"),
        ("f16", "1e6", "FP16"),
        ("f32", "1e300", "FP32"),
        ("bf16", "1e300", "BF16"),
    ],
)
def test_an_initial_value_that_the_state_can_not_hold_is_refused(
    type_name: str, initial: str, wire: str, tmp_path: Path
) -> None:
    said = refusal(counter(getattr(ov.Type, type_name)), tmp_path, LINK + f"initial = {initial}")
    assert said == f"small/model.toml: sequences.state.state.initial: no {wire} holds {float(initial):g}"


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[sequences.state.s]\noutput = 'next'", "sequences.state.s: the model has no 's'; allowed: x, state"),
        (
            "[sequences.state.state]\noutput = 'z'",
            "sequences.state.state.output: the model has no 'z'; allowed: y, next",
        ),
        (
            BATCHED + "[sequences.state.state]\noutput = 'y'\nbatch_axis = 1",
            "batching.max_size: output 'y' of shape [1..8,1] does not follow the batch; allowed: 0",
        ),
        (
            "[sequences.state.state]\noutput = 'y'",
            "sequences.state.state: input 'state' is [2,?,1] and output 'y' [?,1]; "
            "allowed: one fixed shape; see [shapes]",
        ),
        (
            LINK,
            "sequences.state.state: input 'state' is [2,?,1] and output 'next' [2,?,1]; "
            "allowed: one fixed shape; see [shapes]",
        ),
        (
            BATCHED + LINK + "batch_axis = 3",
            "batching.max_size: input 'state' has no dimension 4 to batch over; allowed: 0",
        ),
    ],
    ids=["input", "output", "axis of the output", "shape", "free shape", "axis"],
)
def test_state_that_does_not_fit_the_model_is_refused(toml: str, said: str, tmp_path: Path) -> None:
    assert refusal(models.accumulator(), tmp_path, toml) == f"small/model.toml: {said}"


def test_state_of_two_types_is_refused(tmp_path: Path) -> None:
    said = refusal(counter(ov.Type.f32, ov.Type.i64), tmp_path, LINK)
    assert said == (
        "small/model.toml: sequences.state.state: output 'next' is INT64 and input 'state' FP32; "
        "allowed: numbers of one type"
    )


def test_strings_are_no_state(tmp_path: Path) -> None:
    said = refusal(models.identity([1, 4], ov.Type.string), tmp_path, "[sequences.state.x]\noutput = 'x'")
    assert said == (
        "small/model.toml: sequences.state.x: output 'x' is BYTES and input 'x' BYTES; allowed: numbers of one type"
    )


# -- state that the model keeps itself -----------------------------------------------


def test_a_model_that_keeps_state_has_an_infer_request_for_each_sequence(tmp_path: Path) -> None:
    # Trap 18.
    loaded = load(models.stateful(), tmp_path, "[sequences]\nmax_active = 5\n[execution]\ninfer_requests = 2")
    assert loaded.signature.stateful
    assert loaded.signature.in_sequences
    assert (loaded.pools[0].pool.size, loaded.pools[0].pool.width) == (5, 2)


def test_a_model_that_keeps_state_takes_no_state_tensors_besides(tmp_path: Path) -> None:
    said = refusal(models.stateful(), tmp_path, "[sequences.state.x]\noutput = 'y'")
    assert said == ("small/model.toml: sequences.state: the model keeps its state itself; allowed: no state tensors")


def test_a_model_that_keeps_state_stays_on_one_device(tmp_path: Path) -> None:
    said = refusal(models.stateful(), tmp_path, 'devices = ["CPU", "AUTO:CPU"]')
    assert said == (
        "small/model.toml: devices: the model keeps state (memory), which stays on one device; allowed: one"
    )


@pytest.mark.parametrize(
    ("network", "toml", "most"),
    [
        (models.stateful(), "", 16),
        (models.stateful(), "[sequences]\nmax_active = 3", 3),
        (counter(), LINK, 1024),
        (counter(), "[sequences]\nmax_active = 3\n" + LINK, 3),
    ],
    ids=["its own", "its own, set", "declared", "declared, set"],
)
def test_as_many_sequences_may_live_as_are_cheap_unless_it_is_set(
    network: ov.Model, toml: str, most: int, tmp_path: Path
) -> None:
    source = models.source(models.save(network, tmp_path), toml)
    assert most_sequences(source.config, models.engine().inspect(source)) == most
