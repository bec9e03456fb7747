"""The engine seam: one infer request as the rest of inferd sees it.

:class:`Slot` is all that a pool knows of OpenVINO. The fake in tests/engine/fake_slot.py
implements the same protocol and both pass the same contract tests.
"""

import re
import weakref
from collections.abc import Callable, Sequence
from math import prod
from threading import Event
from typing import Protocol

import numpy as np

from inferd.engine.runtime import ov
from inferd.errors import one_line
from inferd.tensors import DType, Shape, Signature, Tensor, TensorSpec


class RunFailed(Exception):
    """The run raised; ``str()`` is the device's own sentence without source locations."""


class Slot(Protocol):
    """One reusable asynchronous inference. At most one run is in flight at a time."""

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        """Copy the inputs of each member, in port order, into the slot's own memory.

        Several members' rows are laid one after the other along each input's batch axis.
        """

    def reset(self) -> None:
        """Forget the state that a stateful model has kept from earlier runs."""

    def start(self) -> None:
        """Begin a run; raises RunFailed when it can't begin.

        On success ``on_done`` is called on a thread of the device. On failure and on
        cancel it is not (OpenVINO fact 2): :meth:`poll` is the other way a run ends.
        """

    def poll(self) -> bool:
        """Whether the run has ended well; raises RunFailed when it failed or was cancelled."""

    def wait(self) -> None:
        """Block until the run ends; raises RunFailed as :meth:`poll` does."""

    def cancel(self) -> None:
        """Ask the run to end early."""

    def read(self, outputs: Sequence[int], rows: range | None = None) -> list[Tensor]:
        """The outputs at those port indexes, or ``rows`` of them along the batch axis.

        Views that the next run overwrites (OpenVINO fact 8); not contiguous where the batch
        axis is not the first.
        """

    def close(self) -> None:
        """Free the slot; returns once the device holds nothing of it. No run may be in flight."""


SlotFactory = Callable[[Callable[[], None]], Slot]

_LOCATION = re.compile(r"(Exception from|Caught exception:|\bat) \S*\.(cpp|hpp|h):\d+:?")


def sentence(error: Exception) -> str:
    """The part of an OpenVINO message that says what was wrong: no source files, one line."""
    lines = [_LOCATION.sub("", line).strip(" :") for line in str(error).splitlines()]
    said = [line for line in lines if line and line not in ("Caught exception", "Exception from")]
    return one_line(said[-1] if said else type(error).__name__)


class InferSlot:
    """A Slot on an OpenVINO infer request.

    Inputs are copied into the infer request's own tensors: protobuf's buffers can't be
    shared, and sharing some inputs while copying others corrupts data (OpenVINO fact 7).
    """

    def __init__(self, request: "ov.InferRequest", signature: Signature, on_done: Callable[[], None]) -> None:
        self._request = request
        self._signature = signature
        self._writers = [
            _StringInput(request, i) if spec.dtype is DType.BYTES else _NumericInput(request, i, spec)
            for i, spec in enumerate(signature.inputs)
        ]

        def done(_: object) -> None:
            on_done()

        # C++ now holds the only reference to the callback, so its end is the infer request's end.
        self._released = Event()
        weakref.finalize(done, self._released.set)
        request.set_callback(done, None)

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        for writer, parts in zip(self._writers, zip(*members, strict=True), strict=True):
            writer.write(parts)

    def reset(self) -> None:
        self._request.reset_state()

    def start(self) -> None:
        try:
            self._request.start_async()
        except RuntimeError as error:
            raise RunFailed(sentence(error)) from None

    def poll(self) -> bool:
        try:
            return bool(self._request.wait_for(0))
        except RuntimeError as error:
            raise RunFailed(sentence(error)) from None

    def wait(self) -> None:
        try:
            self._request.wait()
        except RuntimeError as error:
            raise RunFailed(sentence(error)) from None

    def cancel(self) -> None:
        self._request.cancel()

    def read(self, outputs: Sequence[int], rows: range | None = None) -> list[Tensor]:
        return [self._read(i, self._signature.outputs[i], rows) for i in outputs]

    def close(self) -> None:
        """The device's thread may still hold the infer request after wait() has returned.

        It then drops it, and with it the callback, for which it needs the GIL; freeing the
        compiled model meanwhile joins that thread with the GIL held, and both wait for ever.
        """
        self._writers.clear()
        del self._request
        self._released.wait()

    def _read(self, index: int, spec: TensorSpec, rows: range | None) -> Tensor:
        tensor = self._request.get_output_tensor(index)
        data = tensor.bytes_data if spec.dtype is DType.BYTES else tensor.data
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


_NO_BYTES = np.empty(0, np.uint8)


def _byte_view(tensor: "ov.Tensor") -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    # reshape(-1) first: a scalar's 0-d array has no byte view.
    view: np.ndarray[tuple[int], np.dtype[np.uint8]] = tensor.data.reshape(-1).view(np.uint8)
    return view
