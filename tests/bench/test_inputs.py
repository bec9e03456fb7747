"""The inputs of bench requests, synthetic or given."""

from itertools import pairwise

import numpy as np
import pytest

from inferd.bench.inputs import given_inputs, synthetic_inputs
from inferd.bench.messages import lay_out, request, shm_request
from inferd.errors import InvalidRequest
from inferd.tensors import Dim, DType, TensorSpec, elements

OPEN, BATCH = Dim(0, None), Dim(0, None)


def spec(dtype: DType, *dims: Dim, name: str = "x") -> TensorSpec:
    return TensorSpec(name, dtype, dims)


@pytest.mark.parametrize("dtype", [t for t in DType if t is not DType.BYTES])
def test_elements_have_the_size_of_their_type(dtype: DType) -> None:
    (feed,) = synthetic_inputs("m", (spec(dtype, Dim(2, 2), Dim(3, 3)),), {}, 1)
    assert (feed.shape, len(feed.data)) == ((2, 3), 6 * dtype.itemsize)


def test_whole_numbers_are_0_or_1_bytes_arbitrary_and_floats_between() -> None:
    shape = (Dim(1000, 1000),)
    of = {t: synthetic_inputs("m", (spec(t, *shape),), {}, 1)[0].data for t in (DType.INT64, DType.UINT8, DType.FP32)}
    assert set(np.frombuffer(of[DType.INT64], "<i8")) == {0, 1}
    assert len(set(of[DType.UINT8])) > 200
    floats = np.frombuffer(of[DType.FP32], "<f4")
    assert 0 <= floats.min() < 0.1 < 0.9 < floats.max() < 1


def test_brain_floats_are_floats_of_0_to_1() -> None:
    (feed,) = synthetic_inputs("m", (spec(DType.BF16, Dim(100, 100)),), {}, 1)
    wide = (np.frombuffer(feed.data, "<u2").astype(np.uint32) << 16).view(np.float32)
    assert 0 <= wide.min() < wide.max() <= 1


def test_strings_carry_their_length() -> None:
    (feed,) = synthetic_inputs("m", (spec(DType.BYTES, Dim(2, 2)),), {}, 1)
    assert len(feed.data) == 2 * (4 + 16)
    assert feed.data[:4] == feed.data[20:24] == (16).to_bytes(4, "little")
    assert feed.data[4:20].isalpha()


def test_a_seed_says_which_elements() -> None:
    specs = (spec(DType.FP32, Dim(9, 9)),)
    assert (
        synthetic_inputs("m", specs, {}, 1)
        == synthetic_inputs("m", specs, {}, 1)
        != synthetic_inputs("m", specs, {}, 2)
    )


def test_an_open_batch_is_one_row() -> None:
    assert synthetic_inputs("m", (spec(DType.FP32, BATCH, Dim(3, 3)),), {}, 1)[0].shape == (1, 3)


def test_any_other_open_dimension_must_be_given() -> None:
    specs = (spec(DType.FP32, BATCH, OPEN, name="images"),)
    with pytest.raises(InvalidRequest, match="--shape images=N,N"):
        synthetic_inputs("m", specs, {}, 1)
    assert synthetic_inputs("m", specs, {"images": (2, 5)}, 1)[0].shape == (2, 5)


@pytest.mark.parametrize("shape", [(1, 4), (3,), (2, 0)])
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="input 'x' is"):
        synthetic_inputs("m", (spec(DType.FP32, BATCH, Dim(3, 3)),), {"x": shape}, 1)


def test_a_shape_for_no_input_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="for 'y', but there is no such input"):
        synthetic_inputs("m", (spec(DType.FP32, Dim(3, 3)),), {"y": (3,)}, 1)


# -- arrays of the caller's ---------------------------------------------------------------------


def test_arrays_are_sent_unchanged_or_converted_without_loss() -> None:
    specs = (spec(DType.FP32, Dim(2, 2)), spec(DType.INT64, Dim(1, 1), name="y"))
    feeds = given_inputs("m", specs, {"x": np.array([1.5, 2], ">f4"), "y": np.array([-3], np.int8)})
    assert feeds[0].data == np.array([1.5, 2], "<f4").tobytes()
    assert feeds[1].data == np.array([-3], "<i8").tobytes()


def test_strings_of_any_kind_become_bytes() -> None:
    feeds = given_inputs("m", (spec(DType.BYTES, Dim(2, 2)),), {"x": np.array(["ä", "bc"])})
    assert feeds[0].data == b"\x02\x00\x00\x00\xc3\xa4\x02\x00\x00\x00bc"


def test_an_array_that_the_metadata_does_not_name_is_sent_unchanged() -> None:
    feeds = given_inputs(
        "m", (spec(DType.FP32, Dim(1, 1)),), {"x": np.zeros(1, np.float32), "state": np.ones((2, 3), np.int32)}
    )
    assert feeds[1].describe() == "state INT32 [2,3]"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros(3, np.float32)}, "but \\[3\\] is given"),
        ({"x": np.zeros(2, np.float64)}, "is FP32, but float64 is given"),
        ({"x": np.zeros(2, np.float32), "z": np.zeros(1, np.complex64)}, "which the protocol does not have"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        given_inputs("m", (spec(DType.FP32, Dim(2, 2)),), arrays)


# -- the messages -------------------------------------------------------------------------------


def test_a_request_carries_its_inputs_raw() -> None:
    feeds = synthetic_inputs("m", (spec(DType.FP32, Dim(2, 2)), spec(DType.UINT8, Dim(3, 3), name="y")), {}, 1)
    message = request("m", "7", feeds)
    assert (message.model_name, message.model_version) == ("m", "7")
    assert [(t.name, t.datatype, list(t.shape)) for t in message.inputs] == [("x", "FP32", [2]), ("y", "UINT8", [3])]
    assert list(message.raw_input_contents) == [f.data for f in feeds]
    assert not message.outputs


def test_tensors_in_shared_memory_are_given_by_region_size_and_offset() -> None:
    feeds = synthetic_inputs("m", (spec(DType.FP32, Dim(2, 2)), spec(DType.UINT8, Dim(3, 3), name="y")), {}, 1)
    places = lay_out("in", [len(f.data) for f in feeds])
    message = shm_request("m", "", feeds, places, [("z", lay_out("out", [12], 128)[0])])
    assert not message.raw_input_contents
    assert [dict(_values(t.parameters)) for t in (*message.inputs, *message.outputs)] == [
        {"shared_memory_region": "in", "shared_memory_byte_size": 8},
        {"shared_memory_region": "in", "shared_memory_byte_size": 3, "shared_memory_offset": 64},
        {"shared_memory_region": "out", "shared_memory_byte_size": 12, "shared_memory_offset": 128},
    ]


def _values(parameters):  # type: ignore[no-untyped-def]
    return {key: getattr(p, p.WhichOneof("parameter_choice")) for key, p in parameters.items()}


def test_places_do_not_overlap() -> None:
    places = lay_out("r", [1, 64, 65, 0, 7], 64)
    assert all(a.end() <= b.offset for a, b in pairwise(places))
    assert all(p.offset % 64 == 0 for p in places)
    assert elements([p.nbytes for p in places if p.nbytes]) == 64 * 65 * 7
