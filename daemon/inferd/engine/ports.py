"""What goes into an infer request and what comes out of it, whichever way it is run."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from inferd.engine.runtime import ov
from inferd.tensors import DType, Shape, Signature, Tensor, TensorSpec


class Ports:
    """The inputs and outputs of one infer request, of which it holds references.

    Inputs are copied into the infer request's own tensors: protobuf's buffers can't be
    shared, and sharing some inputs while copying others corrupts data (OpenVINO fact 7).
    """

    def __init__(self, request: "ov.InferRequest", signature: Signature) -> None:
        self._request = request
        self._outputs = signature.outputs
        self._writers = [
            _StringInput(request, i) if spec.dtype is DType.BYTES else _NumericInput(request, i, spec)
            for i, spec in enumerate(signature.inputs)
        ]

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        """As :meth:`inferd.engine.slot.Slot.write`."""
        for writer, parts in zip(self._writers, zip(*members, strict=True), strict=True):
            writer.write(parts)

    def read(self, outputs: Sequence[int], rows: range | None) -> list[Tensor]:
        """As :meth:`inferd.engine.slot.Slot.read`."""
        return [self._read(i, self._outputs[i], rows) for i in outputs]

    def _read(self, index: int, spec: TensorSpec, rows: range | None) -> Tensor:
        tensor = self._request.get_output_tensor(index)
        data = _strings(tensor) if spec.dtype is DType.BYTES else tensor.data
        if rows is not None:
            data = data[(slice(None),) * spec.batch_axis + (slice(rows.start, rows.stop),)]
        return Tensor(
            spec.dtype, tuple(data.shape), data.reshape(-1).tolist() if spec.dtype is DType.BYTES else data.data
        )


def joined_shape(shapes: Sequence[Shape], axis: int) -> Shape:
    """The shape of tensors of ``shapes`` laid one after the other along ``axis``."""
    if len(shapes) == 1:
        return shapes[0]
    return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])


class _NumericInput:
    """Copies raw elements into one input tensor, reshaping it only when the shape changes."""

    def __init__(self, request: "ov.InferRequest", index: int, spec: TensorSpec) -> None:
        self._tensor = request.get_input_tensor(index)
        self._axis = spec.batch_axis
        self._shape: Shape | None = spec.static_shape
        self._bytes = _byte_view(self._tensor) if self._shape is not None else _NO_BYTES

    def write(self, parts: Sequence[Tensor]) -> None:
        shape = joined_shape([p.shape for p in parts], self._axis)
        if shape != self._shape:
            self._tensor.shape = shape
            self._shape = shape
            self._bytes = _byte_view(self._tensor)
        if len(parts) == 1:
            self._bytes.data[:] = parts[0].data  # type: ignore[assignment]  # numeric data is a buffer
            return
        # All that comes before the batch axis as lines, all from it on as the bytes of a line.
        lines = prod(shape[: self._axis])
        target, at = self._bytes.reshape(lines, -1), 0
        for part in parts:
            source = np.frombuffer(part.data, np.uint8).reshape(lines, -1)  # type: ignore[arg-type]  # likewise
            target[:, at : at + source.shape[1]] = source
            at += source.shape[1]


class _StringInput:
    """Strings have no memory to copy into: a fresh tensor takes their place each time."""

    def __init__(self, request: "ov.InferRequest", index: int) -> None:
        self._request = request
        self._index = index

    def write(self, parts: Sequence[Tensor]) -> None:
        shape = joined_shape([p.shape for p in parts], 0)
        strings = np.array([s for part in parts for s in part.data], dtype=np.bytes_).reshape(shape)
        self._request.set_input_tensor(self._index, ov.Tensor(strings))


def _strings(tensor: "ov.Tensor") -> "np.ndarray[Any, np.dtype[np.bytes_]]":
    # Of no elements, bytes_data ends the process: it divides by zero (OpenVINO fact 31).
    strings: np.ndarray[Any, np.dtype[np.bytes_]]
    strings = tensor.bytes_data if tensor.size else np.empty(tuple(tensor.shape), np.bytes_)
    return strings


_NO_BYTES = np.empty(0, np.uint8)


def _byte_view(tensor: "ov.Tensor") -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    # reshape(-1) first: a scalar's 0-d array has no byte view.
    view: np.ndarray[tuple[int], np.dtype[np.uint8]] = tensor.data.reshape(-1).view(np.uint8)
    return view
