"""The largest values of an output, with their indexes and labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.rpc import classification
from inferd.tensors import Dim, DType, Tensor, TensorSpec

SORTED = [dtype for dtype in DType if dtype not in (DType.BOOL, DType.BF16, DType.BYTES)]
SCORES = TensorSpec("scores", DType.FP32, (Dim(1, 8), Dim(4, 4)))
TEXT = TensorSpec("text", DType.BYTES, (Dim(1, 8),))


def named(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", count: int, *labels: str, batch: bool = False
) -> Tensor:
    dtype = next(dtype for dtype in SORTED if dtype.numpy == values.dtype)
    tensor = Tensor(dtype, values.shape, memoryview(values.tobytes()))
    return classification.classes("m", TensorSpec("y", dtype, None), tensor, count, labels, batch=batch)


def asking(**parameters: int | str) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    item = message.outputs.add(name="scores")
    for key, value in parameters.items():
        setattr(item.parameters[key], "int64_param" if isinstance(value, int) else "string_param", value)
    return message


@given(st.sampled_from(SORTED), st.integers(1, 3), st.integers(0, 40), st.integers(1, 45), st.data())
def test_they_are_the_largest_and_of_equal_ones_the_first(
    dtype: DType, rows: int, width: int, count: int, data: st.DataObject
) -> None:
    values = data.draw(arrays.arrays(dtype.numpy, (rows, width)))
    found = named(values, count, "zero", "", "two", batch=True)
    assert found.shape == (rows, min(count, width))
    assert isinstance(found.data, list)
    for row, texts in zip(values, np.array(found.data, object).reshape(found.shape), strict=True):
        numbers = [-np.inf if value != value else value for value in row.tolist()]
        expected = sorted(range(width), key=lambda index: (-numbers[index], index))[:count]
        assert [int(text.split(b":")[1]) for text in texts] == expected
        assert all(text.endswith(b":0:zero") for text in texts if int(text.split(b":")[1]) == 0)


def test_values_are_written_as_triton_writes_them() -> None:
    values = np.array([0.25, np.nan, 1e-9, -3, np.inf, 2**24], np.float32)
    assert named(values, 9, "a", "", "c").data == [
        b"inf:4",
        b"16777216.000000:5",
        b"0.250000:0:a",
        b"0.000000:2:c",
        b"-3.000000:3",
        b"nan:1",
    ]
    assert named(np.array([7, 255], np.uint8), 1).data == [b"255:1"]


def test_without_a_batch_all_elements_are_one_row() -> None:
    assert named(np.array([[1, 2], [4, 3]], np.int64), 3).data == [b"4:2", b"3:3", b"2:1"]


def test_rows_are_those_of_the_outputs_batch_axis() -> None:
    whole = np.array([[[1, 5], [2, 0]], [[4, 3], [8, 9]]], np.int64)
    spec = TensorSpec("y", DType.INT64, None, batch_axis=1)
    # One of three rows is left out, as in a batch of several requests: what is left is not contiguous.
    part = np.concatenate([whole, whole[:, :1]], axis=1)[:, :2]
    tensor = Tensor(DType.INT64, (2, 2, 2), part.data)
    found = classification.classes("m", spec, tensor, 2, (), batch=True)
    assert (found.shape, found.data) == ((2, 2), [b"5:1", b"4:2", b"9:3", b"8:2"])


def counted(message: pb.ModelInferRequest, spec: TensorSpec = SCORES, rows: int = 1) -> dict[int, int]:
    return classification.counts(message, (0,), (spec,), rows=rows, most=100)


def test_none_is_asked_for_by_0_or_nothing() -> None:
    assert counted(asking(classification=3)) == {0: 3}
    assert counted(asking(classification=0)) == counted(asking()) == {}


@pytest.mark.parametrize(
    ("message", "spec", "rows", "sentence"),
    [
        (asking(classification=-1), SCORES, 1, "must be an integer of 0 or more"),
        (asking(classification="3"), SCORES, 1, "must be an integer of 0 or more"),
        (asking(classification=3), TEXT, 1, "has no meaning for BYTES"),
        (asking(classification=3, shared_memory_region="r"), SCORES, 1, "does not go together with shared memory"),
        (asking(classification=51), SCORES, 2, "is 51, for 2 rows; at most 100 strings are allowed"),
    ],
)
def test_what_can_not_be_classified_is_refused(
    message: pb.ModelInferRequest, spec: TensorSpec, rows: int, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=r"output '.*': parameter 'classification' ") as refused:
        counted(message, spec, rows)
    assert sentence in str(refused.value)


def test_an_output_too_long_to_sort_meanwhile_is_refused() -> None:
    tensor = Tensor(DType.UINT8, (5 << 20,), bytes(5 << 20))
    with pytest.raises(InvalidRequest, match="5242880 elements; at most 4194304 can be classified"):
        classification.classes("m", TensorSpec("y", DType.UINT8, None), tensor, 1, (), batch=False)
