"""ModelInfer and ModelStreamInfer: from the bytes of a request to the bytes of its response."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import structlog

from inferd._pb import open_inference_pb2 as pb
from inferd.catalog.catalog import Catalog
from inferd.config.daemon import Settings
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.dispatcher import Observer
from inferd.errors import (
    Draining,
    InferdError,
    InternalFault,
    InvalidRequest,
    ModelUnavailable,
    NotReceived,
    UnknownModel,
    one_line,
)
from inferd.lifecycle import Lifecycle, Phase
from inferd.metrics.instruments import OTHER
from inferd.requests import NO_LIMIT, NoReply, Observation, Request, SequenceStep, Stages
from inferd.rpc import classification, codec, message_parts, shm_params, status, wire
from inferd.rpc.call import CallContext, InferCall, Recipient, StreamConnection, Wrap
from inferd.rpc.incoming import DEFAULT_INCOMING, IncomingLimits, IncomingMessages
from inferd.rpc.parameters import MAX_REQUEST_ID, IgnoredParameters, check_sequence
from inferd.rpc.parameters import decode as decode_parameters
from inferd.rpc.peer import tenant
from inferd.rpc.request_templates import RequestSpec, TemplateCache
from inferd.rpc.shared_memory import locate_all, locator
from inferd.rpc.shm_params import OutputBindings
from inferd.rpc.stream import InferStream, StreamWindow
from inferd.scheduling.accept_wait import AcceptWait
from inferd.shared_memory.store import RegionStore
from inferd.tensors import Placed, Tensor
from inferd.trace_context import TraceContext
from inferd.transport.call import ServerCall

log = structlog.get_logger("inferd.rpc")

_NO_REPLY = NoReply()


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """How much one stream may have in flight, in requests and in bytes; the limits of a tensor; the metadata key
    that names a client, empty if none does; what messages on their way may take; and bytes of a response."""

    max_pending: int
    max_pending_bytes: int
    tensors: codec.TensorLimits = codec.DEFAULT_LIMITS
    client_key: str = ""
    incoming: IncomingLimits = DEFAULT_INCOMING
    max_response: int = NO_LIMIT

    @classmethod
    def of(cls, settings: Settings, *, proven: bool) -> Self:
        """The settings for inference; a client that has ``proven`` its name is known by that alone."""
        return cls(
            settings.stream_max_pending,
            settings.stream_max_pending_bytes,
            codec.TensorLimits(settings.max_tensor_elements, settings.max_tensor_bytes, settings.max_strings),
            "" if proven else settings.client_metadata_key,
            IncomingLimits.of(settings),
            settings.max_response_bytes,
        )


class Inference:
    """The two inference RPCs. ``traced`` makes a trace context of traceparent and tracestate, which are empty if the
    client sent none. ``accept_wait`` says how long calls have waited when they get here. ``ignored`` counts parameters
    that mean nothing to it."""

    def __init__(
        self,
        catalog: Catalog,
        lifecycle: Lifecycle,
        observe: Observer,
        *,
        settings: InferenceSettings,
        traced: Callable[[str, str], TraceContext | None] = lambda _, __: None,
        shared_memory: RegionStore | None = None,
        accept_wait: AcceptWait | None = None,
    ) -> None:
        self._templates = TemplateCache()
        self.ignored = IgnoredParameters()
        self._accept_wait = accept_wait if accept_wait is not None else AcceptWait()
        self.incoming = IncomingMessages(settings.incoming)
        self._shared_memory = shared_memory
        self._tensor_limits = settings.tensors
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._observe = observe
        self._max_pending = settings.max_pending
        self._max_pending_bytes = settings.max_pending_bytes
        self._max_response = settings.max_response
        self._client_key = settings.client_key
        self._looked_for = frozenset({settings.client_key, "traceparent", "tracestate"})
        self._traced = traced
        self._streams: set[InferStream] = set()
        self._open = 0
        self._none_open = asyncio.Event()

    def model_infer(self, server_call: ServerCall) -> None:
        """One request, one response."""
        self._open += 1
        if (route := self._catalog.sole) is None or not self._turned_away(server_call, route):
            server_call.receive(self._received)

    def _turned_away(self, server_call: ServerCall, route: tuple[ModelVersion, Deployment]) -> bool:
        """Refuse the call before its message is received, if ``route`` is too busy for it whatever it asks."""
        model_version, deployment = route
        if not deployment.dispatcher.scheduler.unread.suspected or not self._lifecycle.accepts:
            return False
        waited = self._accept_wait.current
        stages = Stages(received=server_call.arrived - waited, waited=waited)
        deadline = _earliest(stages.received, server_call.deadline(), None, deployment.config.queue.default_timeout)
        name, version = model_version.name, model_version.version
        stranger = Request(name, version, (), (), _NO_REPLY, deadline=deadline, stages=stages)
        if (error := deployment.dispatcher.refusal_unread(stranger)) is None:
            return False
        stages.answered = time.monotonic_ns()
        self._observe(Observation(name, str(version), error.outcome, stages, error=error))
        status.fail(server_call, error)
        self._leave()
        return True

    def _received(self, server_call: ServerCall, raw: bytes | None) -> None:
        if raw is None:
            self._not_received(server_call)
            return
        call = self.begin(raw, wire.as_unary, self._call_context(server_call), UnaryRecipient(server_call, self._leave))
        if not call.ended:
            server_call.watch(partial(self._left, call))

    def _left(self, call: InferCall) -> None:
        call.abandon()
        self._leave()

    def _not_received(self, server_call: ServerCall) -> None:
        """Its message never arrived whole: too large, or cancelled or past its deadline on the way."""
        turned_away = server_call.turned_away
        error = turned_away if isinstance(turned_away, InferdError) else NotReceived()
        stages = Stages(received=server_call.arrived, answered=time.monotonic_ns())
        self._observe(Observation(OTHER, "", error.outcome, stages, error=error))
        status.fail(server_call, error)
        self._leave()

    def model_stream_infer(self, server_call: ServerCall) -> None:
        """Concurrent requests, each answered on its own; see :class:`InferStream`."""
        if self._lifecycle.phase is Phase.DRAINING:
            status.fail(server_call, Draining())
            return
        self._open += 1
        server_call.expect_many()
        window = StreamWindow(self._max_pending, self._max_pending_bytes)
        connection = StreamConnection()
        call_context = self._call_context(server_call, connection)
        if call_context.waited:
            asyncio.get_running_loop().call_later(call_context.waited / 1e9, call_context.came_later)
        begin, ended = partial(self.begin, call_context=call_context), partial(self._stream_ended, connection)
        stream = InferStream(begin, server_call, window=window, ended=ended)
        self._streams.add(stream)
        stream.read()

    def _stream_ended(self, connection: StreamConnection, stream: InferStream) -> None:
        self._streams.discard(stream)
        connection.close()
        self._leave()

    @property
    def open_calls(self) -> int:
        """RPCs that have not ended; a stream counts once."""
        return self._open

    def end_streams(self) -> None:
        """Read no further on any stream; each ends once the requests read are answered."""
        for stream in list(self._streams):
            stream.stop_reading()

    async def finished(self) -> None:
        """Return once no call is open: each has ended, though the last response may still be on its way."""
        if self._open:
            self._none_open.clear()
            await self._none_open.wait()

    def _leave(self) -> None:
        self._open -= 1
        if not self._open:
            self._none_open.set()

    def _call_context(self, server_call: ServerCall, connection: StreamConnection | None = None) -> CallContext:
        said: dict[str, str] = {}
        for key, value in server_call.metadata:
            if key in self._looked_for:
                text = value if isinstance(value, str) else value.decode(errors="replace")
                # Joined as HTTP joins repeated headers.
                said[key] = f"{said[key]},{text}" if key in said else text
        # A proved identity takes precedence over a claimed one.
        client, waited, deadline = server_call.principal, self._accept_wait.current, server_call.deadline()
        if not said:
            return CallContext(server_call, client, "", "", deadline, connection, waited)
        client = client or said.get(self._client_key, "")
        traceparent, tracestate = said.get("traceparent", ""), said.get("tracestate", "")
        return CallContext(server_call, client, traceparent, tracestate, deadline, connection, waited)

    def begin(self, raw: bytes, wrap: Wrap, call_context: CallContext, recipient: Recipient) -> InferCall:
        """Start the inference in ``raw`` for ``recipient``. A failure ends the call and is recorded, here and once."""
        waited, call_context.waited = call_context.waited, 0
        stages = Stages(time.monotonic_ns() - waited, waited=waited)
        trace = self._traced(call_context.traceparent, call_context.tracestate)
        call = InferCall(recipient, wrap, nbytes=len(raw), stages=stages, trace=trace)
        try:
            self.incoming.check(len(raw))
            self._submit(call, raw, call_context)
        except InferdError as error:
            # Without the traceback, whose frames hold the message and a client's memory.
            self._refuse(call, error.bare())
        except Exception:
            log.exception("request failed unexpectedly")
            self._refuse(call, InternalFault())
        return call

    def _submit(self, call: InferCall, raw: bytes, call_context: CallContext) -> None:
        split = wire.split_request(raw)
        route = None
        if split is not None and self._lifecycle.accepts and (template := self._templates.get(split.head)) is not None:
            # Before any refusal: these are used to count it and to answer it.
            call.message, call.id = template.message, split.id
            call.final_response = template.request_spec.parameters.final_response
            # Once for each request: which of two versions answers alternates.
            route = self._catalog.resolve(template.message.model_name, template.message.model_version)
            # Compared by identity: another version's signature may be equal.
            if template.signature is route[1].signature and len(split.id) <= MAX_REQUEST_ID:
                placed: Sequence[Placed] = ()
                into: OutputBindings = ()
                if template.spans and self._shared_memory is not None:
                    placed = locate_all(self._shared_memory, call_context.server_call, template.spans)
                    into = template.into(placed)
                if (inputs := template.tensors(split.contents, placed)) is not None:
                    call.template, call.route = template, route
                    self._hand_over(
                        call, call_context, route, inputs, template.request_spec, into, shared=template.shared
                    )
                    return
        self._take_whole(call, raw, call_context, split, route)

    def _take_whole(
        self,
        call: InferCall,
        raw: bytes,
        call_context: CallContext,
        split: wire.SplitRequest | None,
        route: tuple[ModelVersion, Deployment] | None,
    ) -> None:
        """Submit a request without a template: all of it is parsed and checked."""
        parts = None
        if len(raw) > message_parts.SHORT:
            parts = message_parts.take_apart(raw)
            raw = parts.head
        call.message = message = codec.parse(raw, pb.ModelInferRequest)
        call.id = message.id
        if self._lifecycle.phase is Phase.STARTING:
            raise ModelUnavailable(one_line(message.model_name, 128), "loading", "the server is starting")
        if not self._lifecycle.accepts:
            raise Draining
        model_version, deployment = route = route or self._catalog.resolve(message.model_name, message.model_version)
        signature, connection, store = deployment.signature, call_context.connection, self._shared_memory
        parameters = decode_parameters(message)
        sequence = check_sequence(message.model_name, parameters, signature)
        inside = sequence is not None
        bindings = None if store is None else shm_params.ShmBindings(locator(store, call_context.server_call))
        inputs = codec.decode_inputs(
            message, signature, in_sequence=inside, limits=self._tensor_limits, bindings=bindings, parts=parts
        )
        made = codec.made_bytes(inputs)
        rows = codec.rows(message.model_name, inputs, signature, in_sequence=inside)
        if deployment.loaded.empty_inputs is not None and (
            problem := deployment.loaded.empty_inputs.problem([tensor.shape for tensor in inputs])
        ):
            raise InvalidRequest(message.model_name, problem)
        call.final_response, call.route = parameters.final_response, route
        step = None
        if sequence is not None:
            client = tenant(call_context.server_call.peer(), call_context.client, call_context.server_call.principal)
            step = SequenceStep(sequence, parameters.sequence_start, parameters.sequence_end, connection, client)
            if connection is not None:
                connection.dispatchers.add(deployment.dispatcher)
        outputs = codec.decode_outputs(message, signature, in_sequence=inside, bindings=bindings)
        most = self._tensor_limits.strings
        call.classes = classification.counts(message, outputs, signature.outputs, rows=rows, most=most)
        if (shapes := deployment.loaded.shapes) is not None:
            # A request with a template has passed these checks.
            shapes.check(model_version.name, inputs)
        request_spec = RequestSpec(
            outputs, parameters, rows, signature.batch_key(inputs) if deployment.dynamic_batching else None
        )
        into = () if bindings is None else bindings.into
        if split is not None and not call.classes:
            self._templates.keep(
                split, message, signature, inputs, request_spec, (model_version.name, str(model_version.version)), into
            )
        if bindings is not None:
            # Data copied out of shared memory counts like data from the wire.
            call.nbytes += bindings.taken_out
        shared = bindings is not None and bindings.shared
        self._hand_over(call, call_context, route, inputs, request_spec, into, shared=shared, step=step, made=made)

    def _hand_over(
        self,
        call: InferCall,
        call_context: CallContext,
        route: tuple[ModelVersion, Deployment],
        inputs: tuple[Tensor, ...],
        request_spec: RequestSpec,
        into: OutputBindings,
        *,
        shared: bool,
        step: SequenceStep | None = None,
        made: int = 0,
    ) -> None:
        """Submit the request of ``call`` to ``route``: ``shared`` says that an input is in a client's memory, and
        ``made`` how many bytes were made of it."""
        model_version, deployment = route
        stages, parameters = call.stages, request_spec.parameters
        if parameters.ignored:
            self.ignored.note(parameters.ignored)
        default = deployment.config.queue.default_timeout
        # Before submitting: an inline run is answered by the time that returns.
        call.request = request = Request(
            model_version.name,
            model_version.version,
            inputs,
            request_spec.outputs,
            call,
            id=call.id,
            deadline=_earliest(stages.received, call_context.deadline, parameters.timeout, default),
            priority=parameters.priority,
            nbytes=call.nbytes,
            made_nbytes=made,
            answer_limit=self._max_response,
            rows=request_spec.rows,
            batch_key=request_spec.batch_key,
            client=call_context.client,
            step=step,
            stages=stages,
            trace=call.trace,
            into=into,
            shared=shared,
        )
        deployment.dispatcher.submit(request)

    def _refuse(self, call: InferCall, error: InferdError) -> None:
        """A request that never entered a queue still counts, under a model only if inferd knows the model."""
        call.request = None
        call.stages.answered = time.monotonic_ns()
        model, version = OTHER, ""
        try:
            # The version that it was submitted to refused it; if it could not be read, none was chosen yet.
            model_version, _ = call.route or self._catalog.find(call.message.model_name, call.message.model_version)
            model, version = model_version.name, str(model_version.version)
        except UnknownModel:
            pass
        except InferdError:
            model = call.message.model_name
        self._observe(
            Observation(
                model,
                version,
                error.outcome,
                call.stages,
                id=_shown(call.id),
                error=error,
                received_bytes=call.nbytes,
                trace=call.trace,
            )
        )
        call.fail(error)


class UnaryRecipient:
    """The response of a unary call ends it."""

    __slots__ = ("_ended", "_server_call")

    def __init__(self, server_call: ServerCall, ended: Callable[[], None]) -> None:
        self._server_call = server_call
        self._ended = ended

    def respond(self, _: InferCall, encoded: bytes) -> None:
        self._server_call.respond(encoded)
        self._ended()

    def refuse(self, _: InferCall, error: InferdError) -> None:
        status.fail(self._server_call, error)
        self._ended()


def _shown(request_id: str) -> str:
    return one_line(request_id, 80)


def _earliest(received: int, deadline: int | None, timeout: int | None, default: float | None) -> int | None:
    """The RPC's deadline or the request's own ``timeout`` (ns), whichever is first; ``default`` (s) if neither."""
    if timeout is not None:
        own = received + timeout
        return own if deadline is None or own < deadline else deadline
    if deadline is not None or default is None:
        return deadline
    return received + int(default * 1e9)
