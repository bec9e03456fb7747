"""Classification: in place of an output, its largest values with their indexes and labels, as Triton writes them."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.rpc import codec, shm_params
from inferd.rpc.parameter_values import whole_number
from inferd.tensors import DType, Tensor, TensorSpec, elements

NAME = "classification"
"""The parameter of an output whose value is the number of classes to name."""

# Sorting more would keep other requests waiting.
_MOST_ELEMENTS = 4 << 20
_UNSORTED = (DType.BOOL, DType.BF16, DType.BYTES)


def counts(
    message: pb.ModelInferRequest, outputs: Sequence[int], specs: Sequence[TensorSpec], *, rows: int, most: int
) -> dict[int, int]:
    """How many classes the request of ``rows`` rows asks for, by the port indexes of ``outputs``, in its order.

    Raises InvalidRequest for a number that is none, for more than ``most`` strings in an output, and for an output
    that is not of numbers, or in shared memory.
    """
    found: dict[int, int] = {}
    for index, item in zip(outputs, message.outputs, strict=False):
        if NAME not in item.parameters:
            continue
        spec = specs[index]
        where = f"output '{spec.name}': "
        count, what = whole_number(message.model_name, where, NAME, item.parameters[NAME]), f"{where}parameter '{NAME}'"
        if spec.dtype in _UNSORTED:
            raise InvalidRequest(message.model_name, f"{what} has no meaning for {spec.dtype.wire}")
        if any(name in item.parameters for name in shm_params.NAMES):
            raise InvalidRequest(message.model_name, f"{what} does not go together with shared memory")
        if count * rows > most:
            raise InvalidRequest(
                message.model_name,
                f"{what} is {count}, for {rows} rows; at most {most} strings are allowed (max_strings)",
            )
        if count:
            found[index] = count
    return found


def classes(model: str, spec: TensorSpec, tensor: Tensor, count: int, labels: Sequence[str], *, batch: bool) -> Tensor:
    """``value:index[:label]`` of the ``count`` largest numbers of ``tensor``, the largest first, of equal ones the one
    in front; with a ``batch``, of each row. BYTES ``[count]``, or ``[rows, count]``.

    Raises InvalidRequest if the tensor has more elements than can be sorted while others wait.
    """
    number = elements(tensor.shape)
    if number > _MOST_ELEMENTS:
        raise InvalidRequest(
            model, f"output '{spec.name}' has {number} elements; at most {_MOST_ELEMENTS} can be classified"
        )
    values = np.frombuffer(codec.raw_bytes(tensor), spec.dtype.numpy).reshape(tensor.shape)
    values = np.moveaxis(values, spec.batch_axis, 0) if batch else values.reshape(1, -1)
    rows = len(values)
    values = values.reshape(rows, number // rows if rows else 0)
    count = min(count, values.shape[1])
    named = [_named(row, index, labels) for row in values for index in _largest(row, count)]
    return Tensor(DType.BYTES, (rows, count) if batch else (count,), named)


def replaced(
    model: str,
    counted: Mapping[int, int],
    indexes: Sequence[int],
    specs: Sequence[TensorSpec],
    outputs: Sequence[Tensor],
    labels: Sequence[str],
    *,
    batch: bool,
) -> tuple[list[TensorSpec], list[Tensor]]:
    """``specs`` and ``outputs`` of the port ``indexes`` with classes in place of each that is ``counted``."""
    made = [
        classes(model, spec, tensor, counted[index], labels, batch=batch) if index in counted else tensor
        for index, spec, tensor in zip(indexes, specs, outputs, strict=True)
    ]
    described = [
        TensorSpec(spec.name, DType.BYTES, None) if index in counted else spec
        for index, spec in zip(indexes, specs, strict=True)
    ]
    return described, made


def _largest(row: "npt.NDArray[np.generic]", count: int) -> "npt.NDArray[np.intp]":
    keys = np.nan_to_num(row, nan=-np.inf, posinf=np.inf, neginf=-np.inf) if row.dtype.kind == "f" else row
    if count < len(keys):
        # All that reach the value of the last one: of equal values, which of them stay is decided below.
        bound = np.partition(keys, len(keys) - count)[len(keys) - count]
        among = np.flatnonzero(keys >= bound)
    else:
        among = np.arange(len(keys))
    # Turned around, as a stable sort puts the one in front last then.
    order = np.argsort(keys[among][::-1], kind="stable")[::-1]
    return among[::-1][order][:count]


def _named(row: "npt.NDArray[np.generic]", index: int, labels: Sequence[str]) -> bytes:
    value = row[index].item()
    text = f"{value:f}" if isinstance(value, float) else str(value)
    label = labels[index] if index < len(labels) else ""
    return f"{text}:{index}{':' if label else ''}{label}".encode()
