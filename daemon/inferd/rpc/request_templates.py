"""Templates of requests: what one checked request tells about all that differ from it only in id and tensors."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from math import prod
from typing import NamedTuple

from inferd._pb import open_inference_pb2 as pb
from inferd.ranges import Range
from inferd.rpc import wire
from inferd.rpc.codec import answer_bytes
from inferd.rpc.parameters import Parameters
from inferd.rpc.shm_params import OutputBindings, check_fits, describe
from inferd.shared_memory.regions import Span
from inferd.tensors import DType, Placed, Shape, Signature, Tensor

# Bounds the memory that clients with ever new heads can take.
_MAX_TEMPLATES = 256

# These must be checked in each request: elements that may be invalid, or of any length.
_CHECKED_DTYPES = (DType.BOOL, DType.BYTES)


class RequestSpec(NamedTuple):
    """A request without its tensors: ``outputs`` are port indexes, in the order to answer them; ``rows``
    is how many it carries, and ``batch_key`` says which requests it may share a batch with."""

    outputs: tuple[int, ...]
    parameters: Parameters
    rows: int
    batch_key: Hashable | None


class InputLayout(NamedTuple):
    """Where one input is: at ``place`` among the contents if it has ``nbytes``, otherwise among the spans. ``checked``
    is the range that its numbers must be in, if any."""

    place: int
    dtype: DType
    shape: Shape
    nbytes: int | None
    checked: Range | None = None


class RequestTemplate:
    """A valid request of ``signature``: what all requests with the same head have in common.

    ``message`` has neither id nor contents, ``inputs`` are in port order. ``spans`` say which parts are in a client's
    memory, inputs before the outputs ``into`` it, each in the message's order. That memory has an owner and
    may be unregistered, so it is not kept here but located for each request. ``answer_bytes`` is the size of the
    response's tensors on the wire, None if that is open.
    """

    __slots__ = (
        "_contents_heads",
        "_fixed",
        "_into",
        "_nbytes",
        "_outputs_part",
        "_sent",
        "_shapes",
        "_start",
        "_targets",
        "answer_bytes",
        "inputs",
        "message",
        "request_spec",
        "shared",
        "signature",
        "spans",
    )

    def __init__(
        self,
        message: pb.ModelInferRequest,
        signature: Signature,
        *,
        inputs: Sequence[InputLayout],
        request_spec: RequestSpec,
        answered_by: tuple[str, str],
        spans: tuple[Span, ...] = (),
        into: Sequence[int] = (),
    ) -> None:
        self.message = message
        self.signature = signature
        self.inputs = inputs
        self.request_spec = request_spec
        self.spans = spans
        self._into = into
        self._sent = sum(one.nbytes is not None for one in inputs)
        self.shared = self._sent < len(inputs)
        # The place of each output among those, None if it goes over the wire.
        self._targets = [into.index(index) if index in into else None for index in request_spec.outputs]
        self.answer_bytes = answer_bytes(
            signature, [index for index in request_spec.outputs if index not in into], request_spec.rows
        )
        name, version = answered_by
        start = pb.ModelInferResponse(model_name=name, model_version=version)
        self._start = start.SerializeToString()
        self._shapes: list[Shape] | None = None
        self._outputs_part = b""
        self._contents_heads: list[bytes] = []
        self._nbytes = 0
        shapes_known = [signature.outputs[index].static_shape for index in request_spec.outputs]
        self._fixed = all(shape is not None for shape in shapes_known)
        if self._fixed:
            self._build_layout([shape for shape in shapes_known if shape is not None])

    def tensors(self, contents: Sequence[memoryview], found: Sequence[Placed] = ()) -> tuple[Tensor, ...] | None:
        """The inputs in port order, views of ``contents`` or in the memory ``found`` for the spans; None if contents
        have the wrong number or length, or numbers are out of range."""
        if len(contents) != self._sent:
            return None
        given = []
        for place, dtype, shape, nbytes, checked in self.inputs:
            if nbytes is None:
                given.append(Tensor(dtype, shape, found[place]))
                continue
            data = contents[place]
            if len(data) != nbytes or (checked is not None and not checked.holds(data)):
                return None
            given.append(Tensor(dtype, shape, data))
        return tuple(given)

    def into(self, found: Sequence[Placed]) -> OutputBindings:
        """The outputs that go into the memory ``found`` for the spans."""
        return tuple(zip(self._into, found[len(found) - len(self._into) :], strict=True))

    def answer(
        self, request_id: str, outputs: Sequence[Tensor], into: OutputBindings = ()
    ) -> tuple[list[wire.Part], int]:
        """The response's parts, views of ``outputs`` among them, and their size in bytes; outputs that go ``into``
        shared memory are written there.

        Raises InvalidRequest if one does not fit, and the errors of writing.
        """
        if not self._fixed:
            shapes = [tensor.shape for tensor in outputs]
            if shapes != self._shapes:
                self._build_layout(shapes)
        request_id_part = wire.id_field(request_id) if request_id else b""
        parts: list[wire.Part] = [self._start, request_id_part, self._outputs_part]
        for head, tensor, target in zip(self._contents_heads, outputs, self._targets, strict=True):
            parts.append(head)
            data = tensor.data
            # Rows from the middle of a run may not be contiguous.
            if type(data) is memoryview and not data.c_contiguous:
                data = data.tobytes()
            if target is None:
                parts.append(data)  # type: ignore[arg-type]  # not Placed without a target, and none is BYTES
            elif type(data) is not Placed:
                # Otherwise it was computed there.
                into[target][1].write(data)  # type: ignore[arg-type]  # none is BYTES
        return parts, self._nbytes + len(request_id_part)

    def _build_layout(self, shapes: list[Shape]) -> None:
        model, places = self.message.model_name, self.spans[len(self.spans) - len(self._into) :]
        described = pb.ModelInferResponse()
        heads, sent = [], 0
        for index, shape, target in zip(self.request_spec.outputs, shapes, self._targets, strict=True):
            spec = self.signature.outputs[index]
            nbytes = prod(shape) * spec.dtype.itemsize
            item = described.outputs.add(name=spec.name, datatype=spec.dtype.wire, shape=shape)
            if target is not None:
                check_fits(model, spec, places[target].nbytes, nbytes)
                describe(item, places[target], nbytes)
                nbytes = 0
            heads.append(wire.contents_head(nbytes))
            sent += nbytes
        final = wire.FINAL if self.request_spec.parameters.final_response else b""
        self._outputs_part = final + described.SerializeToString()
        self._contents_heads = heads
        self._nbytes = len(self._start) + len(self._outputs_part) + sum(map(len, heads)) + sent
        self._shapes = shapes


class TemplateCache:
    """Templates by the head of the request; the oldest are evicted."""

    def __init__(self) -> None:
        self._templates: OrderedDict[bytes, RequestTemplate] = OrderedDict()

    def get(self, head: bytes) -> RequestTemplate | None:
        """The template of requests with that ``head``, if there is one, for the signature that the model had then."""
        return self._templates.get(head)

    def keep(
        self,
        split: wire.SplitRequest,
        message: pb.ModelInferRequest,
        signature: Signature,
        inputs: Sequence[Tensor],
        request_spec: RequestSpec,
        answered_by: tuple[str, str],
        into: OutputBindings = (),
    ) -> None:
        """Remember that ``message``, of which ``split`` has the parts, is valid, if its head identifies others like it.
        ``inputs`` are its tensors in port order, ``answered_by`` the names of model and version, ``into`` the
        outputs that go into shared memory, in the message's order."""
        if signature.in_sequences or len(message.inputs) != len(inputs):
            return
        if any(t.dtype in _CHECKED_DTYPES for t in inputs):
            return
        if any(signature.outputs[index].dtype is DType.BYTES for index in request_spec.outputs):
            return
        names = [{spec.name, *spec.aliases} for spec in signature.inputs]
        places = [next(at for at, item in enumerate(message.inputs) if item.name in own) for own in names]
        placed = {at: t.data for at, t in zip(places, inputs, strict=True) if isinstance(t.data, Placed)}
        in_shm, on_wire = sorted(placed), [at for at in range(len(places)) if at not in placed]
        if len(split.contents) != len(on_wire):
            return
        layouts = [
            InputLayout(in_shm.index(at), t.dtype, t.shape, None)
            if at in placed
            else InputLayout(on_wire.index(at), t.dtype, t.shape, len(split.contents[on_wire.index(at)]), spec.checked)
            for at, t, spec in zip(places, inputs, signature.inputs, strict=True)
        ]
        spans = [Span(p.region, p.offset, p.nbytes) for p in (*(placed[at] for at in in_shm), *(p for _, p in into))]
        self._templates[split.head] = RequestTemplate(
            pb.ModelInferRequest.FromString(split.head),
            signature,
            inputs=layouts,
            request_spec=request_spec,
            answered_by=answered_by,
            spans=tuple(spans),
            into=tuple(index for index, _ in into),
        )
        self._templates.move_to_end(split.head)
        while len(self._templates) > _MAX_TEMPLATES:
            self._templates.popitem(last=False)
