"""What was found out about a request, for all others that differ from it in id and tensors alone."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from math import prod

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc import wire
from inferd.rpc.codec import Parameters
from inferd.tensors import DType, Placed, Shape, Signature, Tensor

# Bounds the memory that clients with ever new heads can take.
_KEPT = 256

# What has to be looked at in each request: elements that may be wrong, or of any length.
_LOOKED_AT = (DType.BOOL, DType.BYTES)


class Known:
    """A request that was good, of ``signature``: all of it that is the same in each with its head.

    ``message`` has neither id nor contents, ``inputs`` are the tensors' places in the message, in port order.
    """

    __slots__ = (
        "_contents_heads",
        "_fixed",
        "_nbytes",
        "_outputs_part",
        "_shapes",
        "_start",
        "inputs",
        "kind",
        "message",
        "outputs",
        "parameters",
        "rows",
        "signature",
    )

    def __init__(
        self,
        message: pb.ModelInferRequest,
        signature: Signature,
        inputs: Sequence[tuple[int, DType, Shape, int]],
        outputs: tuple[int, ...],
        parameters: Parameters,
        rows: int,
        kind: Hashable | None,
        answered_by: tuple[str, str],
    ) -> None:
        self.message = message
        self.signature = signature
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.rows = rows
        self.kind = kind
        name, version = answered_by
        start = pb.ModelInferResponse(model_name=name, model_version=version)
        self._start = start.SerializeToString()
        self._shapes: list[Shape] | None = None
        self._outputs_part = b""
        self._contents_heads: list[bytes] = []
        self._nbytes = 0
        shapes_known = [signature.outputs[index].static_shape for index in outputs]
        self._fixed = all(shape is not None for shape in shapes_known)
        if self._fixed:
            self._lay_out([shape for shape in shapes_known if shape is not None])

    def tensors(self, contents: Sequence[memoryview]) -> tuple[Tensor, ...] | None:
        """The inputs in port order, views of ``contents``; None where those are not as long as they have to be."""
        if len(contents) != len(self.inputs):
            return None
        given = []
        for place, dtype, shape, nbytes in self.inputs:
            data = contents[place]
            if len(data) != nbytes:
                return None
            given.append(Tensor(dtype, shape, data))
        return tuple(given)

    def answer(self, request_id: str, outputs: Sequence[Tensor]) -> tuple[list[wire.Part], int]:
        """The answer's parts, views of ``outputs`` among them, and how many bytes they are."""
        if not self._fixed:
            shapes = [tensor.shape for tensor in outputs]
            if shapes != self._shapes:
                self._lay_out(shapes)
        request_id_part = wire.id_field(request_id)
        parts: list[wire.Part] = [self._start, request_id_part, self._outputs_part]
        for head, tensor in zip(self._contents_heads, outputs, strict=True):
            parts.append(head)
            data = tensor.data
            # Rows out of the middle of a run may lie apart.
            parts.append(data if isinstance(data, bytes) or data.c_contiguous else data.tobytes())  # type: ignore[union-attr, arg-type]  # none is Placed or BYTES
        return parts, self._nbytes + len(request_id_part)

    def _lay_out(self, shapes: list[Shape]) -> None:
        specs = [self.signature.outputs[index] for index in self.outputs]
        described = pb.ModelInferResponse()
        for spec, shape in zip(specs, shapes, strict=True):
            described.outputs.add(name=spec.name, datatype=spec.dtype.wire, shape=shape)
        final = wire.FINAL if self.parameters.final_response else b""
        sizes = [prod(shape) * spec.dtype.itemsize for spec, shape in zip(specs, shapes, strict=True)]
        self._outputs_part = final + described.SerializeToString()
        self._contents_heads = [wire.contents_head(nbytes) for nbytes in sizes]
        self._nbytes = len(self._start) + len(self._outputs_part) + sum(map(len, self._contents_heads)) + sum(sizes)
        self._shapes = shapes


class Heads:
    """The heads that were good of late; the oldest are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Known] = OrderedDict()

    def get(self, head: bytes) -> Known | None:
        """What is known of requests with that ``head``, if anything; of a model's signature as it was then."""
        return self._known.get(head)

    def keep(
        self,
        apart: wire.Apart,
        message: pb.ModelInferRequest,
        signature: Signature,
        inputs: Sequence[Tensor],
        outputs: tuple[int, ...],
        parameters: Parameters,
        rows: int,
        kind: Hashable | None,
        answered_by: tuple[str, str],
    ) -> None:
        """Remember that ``message``, which ``apart`` was taken from, is good, if others like it can be known by their
        heads. ``inputs`` are its tensors in port order, ``answered_by`` the names of model and version."""
        if signature.in_sequences or not len(apart.contents) == len(message.inputs) == len(inputs):
            return
        if any(item.parameters for item in message.inputs) or any(item.parameters for item in message.outputs):
            return
        if any(isinstance(t.data, Placed) or t.dtype in _LOOKED_AT for t in inputs):
            return
        if any(signature.outputs[index].dtype is DType.BYTES for index in outputs):
            return
        names = [{spec.name, *spec.aliases} for spec in signature.inputs]
        places = [next(at for at, item in enumerate(message.inputs) if item.name in known) for known in names]
        laid_out = [
            (place, t.dtype, t.shape, len(apart.contents[place])) for place, t in zip(places, inputs, strict=True)
        ]
        self._known[apart.head] = Known(
            pb.ModelInferRequest.FromString(apart.head),
            signature,
            laid_out,
            outputs,
            parameters,
            rows,
            kind,
            answered_by,
        )
        self._known.move_to_end(apart.head)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
