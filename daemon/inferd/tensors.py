"""Element types, shapes and signatures: what a tensor may look like.

Names of element types and their byte widths follow the Open Inference Protocol
("Tensor Data Types"). Nothing here knows OpenVINO or protobuf.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from inferd.ranges import Range

Buffer = bytes | memoryview
Shape = tuple[int, ...]


class DType(Enum):
    """An element type of the protocol: (wire name, bytes an element, numpy type).

    ``itemsize`` is 0 for BYTES, whose elements each begin with a 4-byte little-endian length.
    BF16 has no numpy type: it is kept as opaque 2-byte words and travels raw only.
    """

    BOOL = ("BOOL", 1, np.dtype(np.bool_))
    UINT8 = ("UINT8", 1, np.dtype(np.uint8))
    UINT16 = ("UINT16", 2, np.dtype(np.uint16))
    UINT32 = ("UINT32", 4, np.dtype(np.uint32))
    UINT64 = ("UINT64", 8, np.dtype(np.uint64))
    INT8 = ("INT8", 1, np.dtype(np.int8))
    INT16 = ("INT16", 2, np.dtype(np.int16))
    INT32 = ("INT32", 4, np.dtype(np.int32))
    INT64 = ("INT64", 8, np.dtype(np.int64))
    FP16 = ("FP16", 2, np.dtype(np.float16))
    BF16 = ("BF16", 2, np.dtype(np.uint16))
    FP32 = ("FP32", 4, np.dtype(np.float32))
    FP64 = ("FP64", 8, np.dtype(np.float64))
    BYTES = ("BYTES", 0, np.dtype(object))

    def __init__(self, wire: str, itemsize: int, numpy: "np.dtype[np.generic]") -> None:
        self.wire = wire
        self.itemsize = itemsize
        self.numpy = numpy


BY_WIRE_NAME = {t.wire: t for t in DType}


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension's bounds; ``hi`` is None when it has no upper bound."""

    lo: int
    hi: int | None

    @property
    def static(self) -> bool:
        return self.lo == self.hi

    def accepts(self, n: int) -> bool:
        return n >= self.lo and (self.hi is None or n <= self.hi)

    def __str__(self) -> str:
        if self.static:
            return str(self.lo)
        if self.hi is None:
            return "?" if self.lo == 0 else f"{self.lo}.."
        return f"{self.lo}..{self.hi}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    ``dims`` is None when the rank itself is dynamic. ``aliases`` are the other names
    OpenVINO knows the port by; requests may use any of them, responses use ``name``.
    ``batch_axis`` is the dimension that counts rows, if the model has a batch. ``held`` is the range
    of an input that the model's devices can represent, None if that is its whole type.
    """

    name: str
    dtype: DType
    dims: tuple[Dim, ...] | None
    aliases: frozenset[str] = field(default=frozenset())
    batch_axis: int = 0
    held: Range | None = None
    static_shape: Shape | None = field(init=False, compare=False, repr=False)
    """The shape when every dimension is fixed, else None; cached, as each request is compared with it."""

    def __post_init__(self) -> None:
        fixed = self.dims is not None and all(d.static for d in self.dims)
        object.__setattr__(self, "static_shape", tuple(d.lo for d in self.dims or ()) if fixed else None)

    @property
    def checked(self) -> Range | None:
        """The range that a request's numbers must be in, None if all are accepted."""
        return self.held if self.held is not None and self.held.refused else None

    @property
    def wire_shape(self) -> list[int]:
        """The shape as metadata shows it: -1 for an open dimension, [-1] for a dynamic rank."""
        if self.dims is None:
            return [-1]
        return [d.lo if d.static else -1 for d in self.dims]

    def describe(self) -> str:
        """The shape with its bounds, such as ``[1..8,224,224,3]``."""
        return "[any rank]" if self.dims is None else "[" + ",".join(map(str, self.dims)) + "]"

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of ``shape`` is valid: rank and bounds fit. A dimension of 0 is treated like others."""
        if any(n < 0 for n in shape):
            return False
        if self.dims is None:
            return True
        return len(shape) == len(self.dims) and all(d.accepts(n) for d, n in zip(self.dims, shape, strict=True))

    def smallest(self) -> Shape:
        """The smallest sensible concrete shape: each lower bound, 1 where that is 0."""
        return tuple(max(d.lo, 1) if not d.static else d.lo for d in self.dims or ())


def elements(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of ``shape``; 1 for a scalar."""
    return prod(shape)


class Memory(Protocol):
    """Memory that a client shares, and may change or shrink at any time. All raise InferdError if it has shrunk."""

    def read(self, at: int, target: memoryview) -> None:
        """Copy the content at ``at`` into ``target``, whose length is the number of bytes."""

    def write(self, at: int, data: Buffer) -> None:
        """Copy ``data`` to ``at``."""

    def view(self, at: int, nbytes: int) -> memoryview | None:
        """The memory itself, None if it must not be used in place: touching mapped memory can end the
        process."""


@dataclass(slots=True)
class Placed:
    """``nbytes`` of a client's memory, at ``offset`` of the region named ``region``.

    ``kept`` is for code that uses it in place: objects that are costly to make, kept as long as this.
    """

    region: str
    offset: int
    nbytes: int
    memory: Memory
    kept: Any = field(default=None, init=False, compare=False, repr=False)

    def __len__(self) -> int:
        return self.nbytes

    def read_into(self, target: memoryview) -> None:
        """Copy all of it to ``target``, which has the same length."""
        self.memory.read(self.offset, target)

    def copied(self) -> bytes:
        """All of it, in memory of its own."""
        data = bytearray(self.nbytes)
        self.memory.read(self.offset, memoryview(data))
        return bytes(data)

    def write(self, data: Buffer) -> None:
        """Copy ``data``, which is not longer, to its beginning."""
        self.memory.write(self.offset, data)

    def view(self) -> memoryview | None:
        """The memory itself, if it may be used in place."""
        return self.memory.view(self.offset, self.nbytes)


class Tensor(NamedTuple):
    """A concrete tensor on its way in or out. A tuple, because some are made for every request.

    ``data`` holds the elements row-major and little-endian for every type but BYTES,
    where it is a sequence of byte strings, one for each element. If it is Placed, the elements are in a client's
    memory: an input is yet to be read from there, an output was computed directly into it.
    """

    dtype: DType
    shape: Shape
    data: Buffer | Placed | Sequence[bytes]

    def copied(self) -> "Tensor":
        """A copy with memory of its own if it is a view: a slot's outputs are overwritten by its next run."""
        data = self.data
        return Tensor(self.dtype, self.shape, data.tobytes() if isinstance(data, memoryview) else data)


@dataclass(frozen=True, slots=True)
class StateLink:
    """A state tensor: the ``output`` port of one run feeds the ``input`` port of the next in a sequence.

    ``initial`` is the state at the start of a sequence, one row of it.
    """

    input: int
    output: int
    initial: Tensor


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's inputs and outputs, in port order, and the batch it allows.

    ``max_batch`` is 0 if the model declares no batch dimension to clients; otherwise
    every tensor's batch axis, the first dimension unless its spec says another, runs
    from 1 to ``max_batch``. ``states`` are tensors that the server carries from one request
    of a sequence to the next; ``stateful`` says that the model keeps a state of its own.
    ``remarks`` are sentences about numbers that its devices can't represent.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int = 0
    states: tuple[StateLink, ...] = ()
    stateful: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def in_sequences(self) -> bool:
        """Whether requests may form sequences."""
        return self.stateful or bool(self.states)

    @property
    def shown_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that a client must send: not state, which the server carries."""
        carried = {link.input for link in self.states}
        return tuple(s for i, s in enumerate(self.inputs) if i not in carried)

    @property
    def shown_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that a client gets by default."""
        carried = {link.output for link in self.states}
        return tuple(s for i, s in enumerate(self.outputs) if i not in carried)

    def batch_key(self, inputs: Sequence[Tensor]) -> Hashable:
        """What requests must have in common to run together: the shapes of their rows."""
        return tuple(
            t.shape[: s.batch_axis] + t.shape[s.batch_axis + 1 :] for s, t in zip(self.inputs, inputs, strict=True)
        )

    def rows_of(self, inputs: Sequence[Tensor]) -> int:
        """How many rows ``inputs`` are, 1 if the model has no batch."""
        return inputs[0].shape[self.inputs[0].batch_axis] if self.max_batch and inputs else 1
