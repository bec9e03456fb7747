"""The sequence parameters of a request, and the inputs left out because the server carries them."""

from collections.abc import Mapping

import numpy as np
import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.rpc import codec
from inferd.rpc.parameters import NO_PARAMETERS, Parameters, check_sequence
from inferd.rpc.parameters import decode as decode_parameters
from inferd.tensors import Dim, DType, Shape, Signature, StateLink, Tensor, TensorSpec, elements
from tests.rpc.messages import encoded

ROWS = Dim(1, 8)
SOUND = TensorSpec("sound", DType.FP32, (ROWS, Dim(4, 4)))
STATE = TensorSpec("state", DType.FP32, (Dim(2, 2), ROWS, Dim(1, 3)), frozenset({"state:0"}), batch_axis=1)
SPEECH = TensorSpec("speech", DType.FP32, (ROWS, Dim(1, 1)))
NEXT = TensorSpec("next", DType.FP32, (Dim(2, 2), ROWS, Dim(1, 3)), batch_axis=1)
INITIAL = Tensor(DType.FP32, (2, 1, 3), bytes(24))

CARRIED = Signature((SOUND, STATE), (SPEECH, NEXT), max_batch=8, states=(StateLink(1, 1, INITIAL),))
STATEFUL = Signature((SOUND,), (SPEECH,), stateful=True)
PLAIN = Signature((SOUND,), (SPEECH,))


def saying(parameters: Mapping[str, tuple[str, object]]) -> pb.ModelInferRequest:
    """A request with ``parameters``: (field of InferParameter, value) by key."""
    message = pb.ModelInferRequest(model_name="m")
    for key, (field, value) in parameters.items():
        setattr(message.parameters[key], field, value)
    return message


def carrying(**shapes: Shape) -> pb.ModelInferRequest:
    """A request with zeros of these shapes as its inputs."""
    message = pb.ModelInferRequest(model_name="m")
    for name, shape in shapes.items():
        message.inputs.add(name=name, datatype="FP32", shape=shape)
        message.raw_input_contents.append(bytes(4 * elements(shape)))
    return message


def rows(message: pb.ModelInferRequest, *, in_sequence: bool = False) -> int:
    inputs = codec.decode_inputs(message, CARRIED, in_sequence=in_sequence)
    return codec.rows("m", inputs, CARRIED, in_sequence=in_sequence)


# -- parameters -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "sequence"),
    [
        ("int64_param", 5, 5),
        ("int64_param", -5, -5),
        ("uint64_param", 2**64 - 1, 2**64 - 1),
        ("string_param", "5", "5"),
        ("string_param", "x" * 256, "x" * 256),
        ("int64_param", 0, None),
        ("uint64_param", 0, None),
        ("string_param", "", None),
    ],
)
def test_a_sequence_id_is_a_number_or_a_text_and_0_and_the_empty_text_mean_none(
    field: str, value: int | str, sequence: int | str | None
) -> None:
    found = decode_parameters(saying({"sequence_id": (field, value)}))
    assert found == Parameters(sequence=sequence)
    assert type(found.sequence) is type(sequence)


def test_start_and_end_may_come_in_one_request() -> None:
    both = {"sequence_start": ("bool_param", True), "sequence_end": ("bool_param", True)}
    assert decode_parameters(saying({"sequence_id": ("int64_param", 1), **both})) == Parameters(
        sequence=1, sequence_start=True, sequence_end=True
    )


def test_clients_that_always_send_the_flags_need_no_sequence() -> None:
    neither = {"sequence_start": ("bool_param", False), "sequence_end": ("bool_param", False)}
    assert decode_parameters(saying({"sequence_id": ("int64_param", 0), **neither})) == NO_PARAMETERS


NO_ID = "parameter 'sequence_id' must be an integer or a string of at most 256 characters"


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"sequence_id": ("bool_param", True)}, NO_ID),
        ({"sequence_id": ("double_param", 1.0)}, NO_ID),
        ({"sequence_id": ("string_param", "x" * 257)}, NO_ID),
        ({"sequence_start": ("bool_param", True)}, "parameter 'sequence_start' needs a sequence_id"),
        ({"sequence_end": ("bool_param", True)}, "parameter 'sequence_end' needs a sequence_id"),
        (
            {"sequence_id": ("int64_param", 0), "sequence_start": ("bool_param", True)},
            "parameter 'sequence_start' needs a sequence_id",
        ),
        (
            {"sequence_id": ("string_param", ""), "sequence_end": ("bool_param", True)},
            "parameter 'sequence_end' needs a sequence_id",
        ),
        (
            {"sequence_id": ("int64_param", 1), "sequence_start": ("int64_param", 1)},
            "parameter 'sequence_start' must be true or false (bool_param)",
        ),
        (
            {"sequence_id": ("int64_param", 1), "sequence_end": ("string_param", "true")},
            "parameter 'sequence_end' must be true or false (bool_param)",
        ),
    ],
)
def test_invalid_sequence_parameters_are_refused_with_one_sentence(
    parameters: Mapping[str, tuple[str, object]], sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_parameters(saying(parameters))
    assert str(refused.value) == f"model 'm': {sentence}"


def test_a_parameter_without_a_value_is_not_a_sequence_id() -> None:
    message = pb.ModelInferRequest(model_name="m")
    message.parameters["sequence_id"].SetInParent()
    with pytest.raises(InvalidRequest, match="'sequence_id' must be an integer or a string"):
        decode_parameters(message)


@pytest.mark.parametrize("sequence", [7, "seven"])
def test_models_with_state_need_a_sequence(sequence: int | str) -> None:
    for signature in (CARRIED, STATEFUL):
        assert check_sequence("m", Parameters(sequence=sequence), signature) == sequence


def test_a_state_that_the_client_may_send_itself_needs_no_sequence_but_one_inside_the_model_does() -> None:
    assert check_sequence("m", NO_PARAMETERS, CARRIED) is None
    assert check_sequence("m", NO_PARAMETERS, PLAIN) is None
    with pytest.raises(InvalidRequest, match="it keeps state between requests: send a sequence_id"):
        check_sequence("m", NO_PARAMETERS, STATEFUL)


def test_a_model_without_a_state_takes_no_sequence() -> None:
    with pytest.raises(InvalidRequest, match="it keeps no state between requests: parameter 'sequence_id' has no mean"):
        check_sequence("m", Parameters(sequence=7), PLAIN)


# -- inputs -----------------------------------------------------------------------


def test_in_a_sequence_the_state_is_left_out_and_its_initial_value_stands_in() -> None:
    sound, state = codec.decode_inputs(carrying(sound=(1, 4)), CARRIED, in_sequence=True)
    assert sound == Tensor(DType.FP32, (1, 4), bytes(16))
    assert state is INITIAL


@pytest.mark.parametrize("name", ["state", "state:0"])
def test_in_a_sequence_a_state_that_is_sent_is_refused_by_any_of_its_names(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        codec.decode_inputs(carrying(sound=(1, 4), **{name: (2, 1, 3)}), CARRIED, in_sequence=True)
    sentence = "input 'state' is state that the server carries in a sequence; leave it out"
    assert str(refused.value) == f"model 'm': {sentence}"


def test_in_a_sequence_the_other_inputs_are_still_needed() -> None:
    with pytest.raises(InvalidRequest, match="input 'sound' is missing"):
        codec.decode_inputs(carrying(), CARRIED, in_sequence=True)


def test_outside_a_sequence_the_state_is_an_ordinary_input() -> None:
    _, state = codec.decode_inputs(carrying(sound=(1, 4), state=(2, 1, 3)), CARRIED)
    assert state == INITIAL
    with pytest.raises(
        InvalidRequest, match=r"'state' is missing and the request has no sequence_id, .*; inputs: sound, state"
    ):
        codec.decode_inputs(carrying(sound=(1, 4)), CARRIED)


# -- rows -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 8])
def test_rows_are_counted_along_each_tensors_own_axis(count: int) -> None:
    assert rows(carrying(sound=(count, 4), state=(2, count, 3))) == count


def test_tensors_that_disagree_on_the_rows_are_named_with_their_rows() -> None:
    with pytest.raises(InvalidRequest, match="inputs disagree on the batch size: 'sound' 2, 'state' 3"):
        rows(carrying(sound=(2, 4), state=(2, 3, 3)))


def test_a_request_of_a_sequence_is_one_row() -> None:
    assert rows(carrying(sound=(1, 4)), in_sequence=True) == 1
    with pytest.raises(InvalidRequest, match="a request of a sequence must have a batch of 1, got 2"):
        rows(carrying(sound=(2, 4)), in_sequence=True)


def test_requests_run_together_if_all_but_the_rows_is_equal() -> None:
    def kind(sound: Shape, state: Shape) -> object:
        return CARRIED.batch_key(codec.decode_inputs(carrying(sound=sound, state=state), CARRIED))

    assert kind((1, 4), (2, 1, 3)) == kind((5, 4), (2, 5, 3))
    assert kind((2, 4), (2, 2, 3)) != kind((2, 4), (2, 2, 2))
    alone = codec.decode_inputs(carrying(sound=(1, 4)), CARRIED, in_sequence=True)
    assert CARRIED.batch_key(alone) == kind((3, 4), (2, 3, 3))


# -- outputs ----------------------------------------------------------------------


def test_in_a_sequence_the_state_is_returned_only_on_request() -> None:
    message = carrying(sound=(1, 4))
    assert codec.decode_outputs(message, CARRIED, in_sequence=True) == (0,)
    assert codec.decode_outputs(message, CARRIED) == (0, 1)
    message.outputs.add(name="next")
    assert codec.decode_outputs(message, CARRIED, in_sequence=True) == (1,)


def test_a_state_among_the_answers_is_encoded_like_any_output() -> None:
    state = Tensor(DType.FP32, (2, 1, 3), np.arange(6, dtype=np.float32).data.cast("B"))
    answer = encoded("m", "1", "", [NEXT], [state])
    assert list(answer.outputs[0].shape) == [2, 1, 3]
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [0, 1, 2, 3, 4, 5]
