"""Parameters that inferd does not know are ignored and counted, but for those that would change what is meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.rpc import parameters
from inferd.rpc.parameters import IgnoredParameters

KNOWN = {"timeout", "priority", "sequence_id", "sequence_start", "sequence_end", "triton_enable_empty_final_response"}
STRICT = ("sequence_", "shared_memory_", "classification")
VALUES = (
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
    | st.builds(pb.InferParameter, string_param=st.text(max_size=8))
    | st.builds(pb.InferParameter, bool_param=st.booleans())
    | st.builds(pb.InferParameter, double_param=st.floats())
    | st.just(pb.InferParameter())
)
OTHERS = st.dictionaries(
    st.text(max_size=12).filter(lambda key: key not in KNOWN and not key.startswith(STRICT)), VALUES
)


@given(OTHERS, OTHERS, OTHERS)
def test_what_means_nothing_changes_nothing(
    own: dict[str, pb.InferParameter], of_input: dict[str, pb.InferParameter], of_output: dict[str, pb.InferParameter]
) -> None:
    message = pb.ModelInferRequest(model_name="m", parameters=own)
    message.parameters["priority"].int64_param = 3
    message.inputs.add(name="x", parameters=of_input)
    message.outputs.add(name="y", parameters=of_output)
    found = parameters.decode(message)
    assert sorted(found.ignored) == sorted([*own, *of_input, *of_output])
    assert found == parameters.Parameters(priority=3, ignored=found.ignored)


@pytest.mark.parametrize("key", ["sequence_idd", "shared_memory_handle", "classification"])
@pytest.mark.parametrize("place", ["request", "input 'x'", "output 'x'"])
def test_what_would_change_the_meaning_is_refused_where_it_is_unknown(key: str, place: str) -> None:
    message = pb.ModelInferRequest(model_name="m")
    holder = {"request": message, "input 'x'": message.inputs, "output 'x'": message.outputs}[place]
    (holder if holder is message else holder.add(name="x")).parameters[key].int64_param = 1
    if (key, place) == ("classification", "output 'x'"):
        assert parameters.decode(message) == parameters.NO_PARAMETERS
        return
    with pytest.raises(InvalidRequest) as refused:
        parameters.decode(message)
    assert f"parameter '{key}'; allowed: " in str(refused.value)
    assert place in str(refused.value)


def test_each_name_is_logged_once_and_each_parameter_counted() -> None:
    ignored = IgnoredParameters()
    with capture_logs() as lines:
        for _ in range(3):
            ignored.note(("max_tokens", "con\ntent"))
    assert ignored.number == 6
    assert [line["name"] for line in lines] == ["max_tokens", "con tent"]


def test_names_without_end_are_not_logged_without_end() -> None:
    ignored = IgnoredParameters()
    with capture_logs() as lines:
        ignored.note(map(str, range(1000)))
    assert (ignored.number, len(lines)) == (1000, 100)
