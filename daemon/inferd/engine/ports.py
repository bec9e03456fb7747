"""The inputs and outputs of an infer request, for every execution path."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from inferd.engine.runtime import ov
from inferd.engine.unwritten_outputs import watched
from inferd.errors import InvalidRequest, ResponseTooLarge
from inferd.requests import NO_LIMIT
from inferd.tensors import DType, Placed, Shape, Signature, Tensor, TensorSpec

# Copies of the state, by variable name.
State = Mapping[str, "ov.Tensor"]

_Set = Callable[["ov.Tensor"], None]


class _SharedTensor(NamedTuple):
    """A client's memory as a tensor, which keeps its mapping alive."""

    dtype: DType
    shape: Shape
    tensor: "ov.Tensor"


class Ports:
    """The inputs and outputs of one infer request, which it holds references to.

    Inputs are copied into the infer request's own tensors: protobuf's buffers can't be shared, and
    sharing some inputs while copying others corrupts data (OpenVINO fact 7). If a client's memory
    replaces a tensor for one run, the infer request gets its own tensor back afterwards.
    """

    def __init__(self, request: "ov.InferRequest", signature: Signature) -> None:
        self._request = request
        self._outputs = signature.outputs
        # Whether the last run had outputs that are not to be kept.
        self._outsize = False
        self._open_outputs = [i for i, spec in enumerate(signature.outputs) if spec.static_shape is None]
        self._can_share = _on_cpu(request)
        self._shareable = _shareable(request, signature) if self._can_share else {}
        # Ports whose own tensor must be restored, with the tensor in its place, which must be kept alive (OpenVINO fact
        # 37); and the outputs that are computed into a client's memory at present, by port index.
        self._shared: list[tuple[_NumericInput | _SharedOutput, ov.Tensor]] = []
        self.in_place: dict[int, Tensor] = {}
        # Operations that may have had an empty operand; an additional output tells after each run.
        self.watched = watched(request.model_outputs)
        self._writers = [
            _StringInput(request, i) if spec.dtype is DType.BYTES else _NumericInput(request, i, spec)
            for i, spec in enumerate(signature.inputs)
        ]

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        """See :meth:`inferd.engine.slot.Slot.write`."""
        if self._outsize:
            self._renew_outputs()
        if len(members) == 1:
            for writer, tensor in zip(self._writers, members[0], strict=True):
                writer.write_one(tensor)
            return
        for writer, parts in zip(self._writers, zip(*members, strict=True), strict=True):
            writer.write(parts)

    def write_shared(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]]) -> None:
        """See :meth:`inferd.engine.slot.Slot.write_shared`."""
        if self._outsize:
            self._renew_outputs()
        for writer, tensor in zip(self._writers, inputs, strict=True):
            placed = tensor.data
            # BYTES are never placed.
            if (
                self._can_share
                and isinstance(placed, Placed)
                and isinstance(writer, _NumericInput)
                and placed.nbytes
                and (memory := placed.view()) is not None
            ):
                self._share(writer, placed, memory, tensor.shape)
            else:
                writer.write_one(tensor)
        for index, placed in into:
            output = self._shareable.get(index)
            if output is not None and 0 < output.nbytes <= placed.nbytes and (memory := placed.view()) is not None:
                self._share(output, placed, memory[: output.nbytes], output.shape)
                self.in_place[index] = Tensor(self._outputs[index].dtype, output.shape, placed)

    def release(self) -> None:
        """See :meth:`inferd.engine.slot.Slot.release`."""
        if self.in_place:
            self.in_place.clear()
        while self._shared:
            port, _ = self._shared[-1]
            port.set(port.own)
            self._shared.pop()

    def read(self, outputs: Sequence[int], rows: range | None, most: int = NO_LIMIT) -> list[Tensor]:
        """See :meth:`inferd.engine.slot.Slot.read`."""
        if self._open_outputs and most < NO_LIMIT:
            self._check_size(outputs, rows, most)
        if self.watched:
            self._check_watched()
        if self.in_place:
            return [self.in_place.get(i) or self._read(i, self._outputs[i], rows) for i in outputs]
        return [self._read(i, self._outputs[i], rows) for i in outputs]

    def _check_watched(self) -> None:
        ran = self._request.get_output_tensor(len(self._outputs)).data
        if not ran.all():
            idle = self.watched[int(ran.argmin())]
            raise InvalidRequest("", f"{idle} had nothing to compute: its operand is empty for these inputs")

    def _check_size(self, outputs: Sequence[int], rows: range | None, most: int) -> None:
        tensors = [(i, self._request.get_output_tensor(i)) for i in outputs if i not in self.in_place]
        nbytes = sum(tensor.byte_size for _, tensor in tensors)
        if rows is not None and (shape := tensors[0][1].shape):
            nbytes = nbytes * len(rows) // max(1, shape[self._outputs[tensors[0][0]].batch_axis])
        if nbytes > most:
            # Only from the next run on: a batch has more to read.
            self._outsize = True
            raise ResponseTooLarge("", nbytes, most)

    def _renew_outputs(self) -> None:
        """Give the infer request small output tensors: with those, it and its stream return the memory of the large
        ones in the next run, and would keep it otherwise (OpenVINO fact 52)."""
        self._outsize = False
        for index in self._open_outputs:
            spec, output = self._outputs[index], self._request.get_output_tensor(index)
            small = [1] * len(output.shape) if spec.dims is None else spec.smallest()
            self._request.set_output_tensor(index, ov.Tensor(output.element_type, ov.Shape(small)))

    def state(self) -> State:
        """See :meth:`inferd.engine.slot.Slot.state`."""
        kept = {}
        for variable in self._request.query_state():
            copy = ov.Tensor(variable.state.element_type, variable.state.shape)
            variable.state.copy_to(copy)
            kept[variable.name] = copy
        return kept

    def resume(self, state: State) -> None:
        """See :meth:`inferd.engine.slot.Slot.resume`."""
        for variable in self._request.query_state() if state else ():
            variable.state = state[variable.name]

    def _share(self, port: "_NumericInput | _SharedOutput", placed: Placed, memory: memoryview, shape: Shape) -> None:
        """Replace the port's own tensor with ``memory``, which belongs to ``placed``."""
        kept: _SharedTensor | None = placed.kept
        if kept is None or kept.dtype is not port.dtype or kept.shape != shape:
            tensor = ov.Tensor(np.frombuffer(memory, np.uint8), ov.Shape(shape), port.own.element_type)
            placed.kept = kept = _SharedTensor(port.dtype, shape, tensor)
        # Recorded first, so that the infer request gets its own tensor back even after an error.
        self._shared.append((port, kept.tensor))
        port.set(kept.tensor)

    def _read(self, index: int, spec: TensorSpec, rows: range | None) -> Tensor:
        tensor = self._request.get_output_tensor(index)
        data = _strings(tensor) if spec.dtype is DType.BYTES else tensor.data
        if rows is not None:
            data = data[(slice(None),) * spec.batch_axis + (slice(rows.start, rows.stop),)]
        return Tensor(
            spec.dtype, tuple(data.shape), data.reshape(-1).tolist() if spec.dtype is DType.BYTES else data.data
        )


def joined_shape(shapes: Sequence[Shape], axis: int) -> Shape:
    """The shape of tensors of ``shapes`` concatenated along ``axis``."""
    if len(shapes) == 1:
        return shapes[0]
    return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])


class _NumericInput:
    """Copies raw elements into one input tensor, reshaping it only when the shape changes; or uses another tensor that
    was ``set``."""

    def __init__(self, request: "ov.InferRequest", index: int, spec: TensorSpec) -> None:
        self.set: _Set = partial(request.set_input_tensor, index)
        self.own = request.get_input_tensor(index)
        self.dtype = spec.dtype
        self._axis = spec.batch_axis
        self._shape: Shape | None = spec.static_shape
        self._bytes = _byte_view(self.own) if self._shape is not None else _NO_BYTES
        self._view = self._bytes.data

    def write_one(self, tensor: Tensor) -> None:
        if tensor.shape != self._shape:
            self._reshape(tensor.shape)
        data = tensor.data
        if isinstance(data, Placed):
            data.read_into(self._view)
        else:
            self._view[:] = data  # type: ignore[assignment]  # numeric data is a buffer

    def write(self, parts: Sequence[Tensor]) -> None:
        shape = joined_shape([p.shape for p in parts], self._axis)
        if shape != self._shape:
            self._reshape(shape)
        if not self._bytes.size:
            return
        # Rows: the dimensions before the batch axis. Columns: the bytes of the rest.
        lines = prod(shape[: self._axis])
        target, at = self._bytes.reshape(lines, -1), 0
        for part in parts:
            data = part.data.copied() if isinstance(part.data, Placed) else part.data
            source = np.frombuffer(data, np.uint8).reshape(lines, -1)  # type: ignore[arg-type]  # likewise
            target[:, at : at + source.shape[1]] = source
            at += source.shape[1]

    def _reshape(self, shape: Shape) -> None:
        self.own.shape = shape
        self._shape = shape
        self._bytes = _byte_view(self.own)
        self._view = self._bytes.data


class _StringInput:
    """Strings have no buffer to copy into: each write sets a new tensor."""

    def __init__(self, request: "ov.InferRequest", index: int) -> None:
        self._request = request
        self._index = index

    def write_one(self, tensor: Tensor) -> None:
        self.write((tensor,))

    def write(self, parts: Sequence[Tensor]) -> None:
        shape = joined_shape([p.shape for p in parts], 0)
        strings = np.array([s for part in parts for s in part.data], dtype=np.bytes_).reshape(shape)  # type: ignore[union-attr]  # strings are listed
        self._request.set_input_tensor(self._index, ov.Tensor(strings))


class _SharedOutput:
    """One output of a fixed shape, which may be computed directly into other memory."""

    def __init__(self, request: "ov.InferRequest", index: int, spec: TensorSpec) -> None:
        """``spec`` has a fixed shape."""
        self.set: _Set = partial(request.set_output_tensor, index)
        self.own = request.get_output_tensor(index)
        self.dtype = spec.dtype
        self.shape: Shape = spec.static_shape or ()
        self.nbytes = int(self.own.byte_size)


def _shareable(request: "ov.InferRequest", signature: Signature) -> dict[int, _SharedOutput]:
    """The outputs that may use other memory, by index: those of a fixed shape, except strings.

    Outputs that pass an input through are excluded: they share its name, and setting one sets the other (OpenVINO
    fact 36).
    """
    taken = set().union(*(port.names for port in request.model_inputs))
    return {
        i: _SharedOutput(request, i, spec)
        # There may be an additional output for the watched operations.
        for i, (spec, port) in enumerate(zip(signature.outputs, request.model_outputs, strict=False))
        if spec.static_shape is not None
        and spec.dtype is not DType.BYTES
        and port.partial_shape.is_static
        and not taken & port.names
    }


def _on_cpu(request: "ov.InferRequest") -> bool:
    """Whether it computes in the client's kind of memory; other devices were not tested with such memory."""
    return list(request.get_compiled_model().get_property("EXECUTION_DEVICES")) == ["CPU"]


def _strings(tensor: "ov.Tensor") -> "np.ndarray[Any, np.dtype[np.bytes_]]":
    # Without elements, bytes_data divides by zero and kills the process (OpenVINO fact 31).
    strings: np.ndarray[Any, np.dtype[np.bytes_]]
    strings = tensor.bytes_data if tensor.size else np.empty(tuple(tensor.shape), np.bytes_)
    return strings


_NO_BYTES = np.empty(0, np.uint8)


def _byte_view(tensor: "ov.Tensor") -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    # reshape(-1) first: a scalar's 0-d array has no byte view.
    view: np.ndarray[tuple[int], np.dtype[np.uint8]] = tensor.data.reshape(-1).view(np.uint8)
    return view
