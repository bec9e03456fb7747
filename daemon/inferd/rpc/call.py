"""One inference on the wire: who requests what, and where its response goes."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from inferd._pb import open_inference_pb2 as pb
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.dispatcher import Dispatcher
from inferd.errors import InferdError, ResponseTooLarge
from inferd.requests import Request, Stages
from inferd.rpc import classification, codec, shm_params, wire
from inferd.rpc.request_templates import RequestTemplate
from inferd.tensors import Tensor, TensorSpec
from inferd.trace_context import TraceContext
from inferd.transport.call import ServerCall

Wrap = Callable[[Iterable[wire.Part], int], bytes]

_NOTHING = pb.ModelInferRequest()
_NO_CLASSES: Mapping[int, int] = MappingProxyType({})


class StreamConnection:
    """A stream that carries sequences, and the dispatchers whose sequences end with it."""

    def __init__(self) -> None:
        self.dispatchers: set[Dispatcher] = set()

    def close(self) -> None:
        """The stream has ended."""
        for dispatcher in self.dispatchers:
            dispatcher.disconnected(self)


@dataclass(slots=True)
class CallContext:
    """An RPC as its requests see it.

    ``server_call`` is the RPC itself, for memory that its client shares. ``client``, the name that a quota counts, and
    the trace come from its metadata, and are empty without them. ``deadline`` is on the monotonic clock, in
    nanoseconds. Sequences end with their ``connection``, if there is one. ``waited`` is how long its next request has
    waited to be seen, in nanoseconds: only the first can have come with the call.
    """

    server_call: ServerCall
    client: str = ""
    traceparent: str = ""
    tracestate: str = ""
    deadline: int | None = None
    connection: StreamConnection | None = None
    waited: int = 0

    def came_later(self) -> None:
        """The call brought no request; requests that arrive now were sent later."""
        self.waited = 0


class Recipient(Protocol):
    """Where the one response of a call goes."""

    def respond(self, call: "InferCall", encoded: bytes) -> None:
        """Take the response of ``call``."""

    def refuse(self, call: "InferCall", error: InferdError) -> None:
        """Take the error that ``call`` ended with."""


class InferCall:
    """One inference on the wire. It ends once, with a response or an error for its ``recipient``, or abandoned.

    ``wrap`` joins the parts of the response, and their size in bytes, to the bytes to send. ``nbytes`` is the size of
    the request. ``message`` is the request, without its ``id``; its contents may be left out. ``route`` is the model
    version that answers, None until one is chosen. ``classes`` says how many of them are to be named of an output, by
    port index.
    """

    __slots__ = (
        "classes",
        "ended",
        "final_response",
        "id",
        "message",
        "nbytes",
        "recipient",
        "request",
        "route",
        "stages",
        "template",
        "trace",
        "wrap",
    )

    def __init__(
        self, recipient: Recipient, wrap: Wrap, *, nbytes: int, stages: Stages, trace: TraceContext | None
    ) -> None:
        self.recipient = recipient
        self.ended = False
        self.wrap = wrap
        self.nbytes = nbytes
        self.stages = stages
        self.trace = trace
        self.message = _NOTHING
        self.id = ""
        self.template: RequestTemplate | None = None
        self.request: Request | None = None
        self.final_response = False
        self.classes: Mapping[int, int] = _NO_CLASSES
        self.route: tuple[ModelVersion, Deployment] | None = None

    @property
    def answer_bytes(self) -> int | None:
        """Bytes of tensors in the response on the wire, None if that is open."""
        if self.request is None or self.route is None:
            return 0  # refused, or already answered
        if self.template is not None:
            return self.template.answer_bytes
        elsewhere = dict(self.request.into)
        sent = [index for index in self.request.outputs if index not in elsewhere]
        return codec.answer_bytes(self.route[1].signature, sent, self.request.rows)

    def answer(self, outputs: Sequence[Tensor]) -> None:
        """Encode now: the outputs are views that the slot's next run overwrites."""
        request = self.request
        if request is None or self.route is None or self.ended:
            return
        if self.template is not None:
            parts, nbytes = self.template.answer(request.id, outputs, request.into)
        else:
            parts = self._encoded(request, *self.route, outputs)
            nbytes = sum(memoryview(part).nbytes for part in parts)
        if nbytes > request.answer_limit:
            raise ResponseTooLarge(request.model, nbytes, request.answer_limit)
        encoded = self.wrap(parts, nbytes)
        request.stages.copied = time.monotonic_ns()
        request.answer_nbytes = len(encoded)
        self._end()
        self.recipient.respond(self, encoded)

    def _encoded(
        self, request: Request, model_version: ModelVersion, deployment: Deployment, outputs: Sequence[Tensor]
    ) -> list[wire.Part]:
        specs: Sequence[TensorSpec] = [deployment.signature.outputs[i] for i in request.outputs]
        if self.classes:
            labels, batch = deployment.loaded.class_labels, deployment.signature.max_batch > 0
            specs, outputs = classification.replaced(
                request.model, self.classes, request.outputs, specs, outputs, labels, batch=batch
            )
        name, version = model_version.name, str(model_version.version)
        if not request.into:
            return codec.encode(name, version, request.id, specs, outputs, final_response=self.final_response)
        response = shm_params.answer(name, version, request, specs, outputs, codec.raw_bytes)
        if self.final_response:
            response.parameters["triton_final_response"].bool_param = True
        return [response.SerializeToString()]

    def fail(self, error: InferdError) -> None:
        """End the call with ``error``."""
        if not self.ended:
            self._end()
            self.recipient.refuse(self, error)

    def abandon(self) -> None:
        """The client has left: withdraw what is still in the dispatcher."""
        request = self.request
        self._end()
        if request is not None and self.route is not None:
            self.route[1].dispatcher.cancel(request)

    def _end(self) -> None:
        self.ended = True
        # They refer to each other: without this, the request would stay until the garbage collector runs.
        self.request = None
