"""ModelInfer and ModelStreamInfer: from the bytes of a request to the bytes of its answer."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import grpc
import structlog

from inferd._pb import open_inference_pb2 as pb
from inferd.catalog import Catalog, Live, Served
from inferd.dispatcher import Dispatcher, Observer
from inferd.errors import Draining, InferdError, InternalFault, ModelUnavailable, UnknownModel, one_line
from inferd.lifecycle import Lifecycle, Phase
from inferd.metrics.instruments import OTHER
from inferd.requests import Observation, Request, SequenceStep, Stages
from inferd.rpc import codec, placement, status, wire
from inferd.rpc.gate import CALLER
from inferd.rpc.heads import Heads, Known
from inferd.rpc.shared_memory import placing
from inferd.rpc.stream import Stream, Window
from inferd.shared_memory.store import Store
from inferd.tensors import Signature, Tensor
from inferd.trace_context import TraceContext

log = structlog.get_logger("inferd.rpc")


Wrap = Callable[[Iterable[wire.Part], int], bytes]

_NOTHING = pb.ModelInferRequest()


class Call:
    """One inference on the wire, and its reply slot: the future holds the encoded answer.

    ``wrap`` joins the parts of the answer, which are so many bytes together, to the bytes to send. ``message`` is what
    was asked, but for the ``id``; its contents may be left out.
    """

    __slots__ = ("_live", "_served", "final_response", "future", "id", "known", "message", "request", "wrap")

    def __init__(self, future: "asyncio.Future[bytes]", wrap: Wrap) -> None:
        self.future = future
        self.wrap = wrap
        self.message = _NOTHING
        self.id = ""
        self.known: Known | None = None
        self.request: Request | None = None
        self.final_response = False
        self._served: Served | None = None
        self._live: Live | None = None

    def bind(self, served: Served, live: Live) -> None:
        """The model version that answers."""
        self._served, self._live = served, live

    @property
    def served(self) -> Served | None:
        """The model version it is bound to, None while it is to none."""
        return self._served

    def answer(self, outputs: Sequence[Tensor]) -> None:
        """Encode now: the outputs are views that the slot's next run overwrites."""
        if self.future.done() or self.request is None or self._served is None or self._live is None:
            return
        request = self.request
        if self.known is not None:
            parts, nbytes = self.known.answer(request.id, outputs)
        else:
            whole = self._encoded(request, self._served, self._live.signature, outputs)
            parts, nbytes = [whole], len(whole)
        encoded = self.wrap(parts, nbytes)
        request.stages.copied = time.monotonic_ns()
        request.answer_nbytes = len(encoded)
        self.future.set_result(encoded)

    def _encoded(self, request: Request, served: Served, signature: Signature, outputs: Sequence[Tensor]) -> bytes:
        specs = [signature.outputs[i] for i in request.outputs]
        name, version = served.name, str(served.version)
        if request.into:
            response = placement.answer(name, version, request, specs, outputs, codec.raw_bytes)
        else:
            response = codec.encode(name, version, request.id, specs, outputs)
        if self.final_response:
            response.parameters["triton_final_response"].bool_param = True
        return response.SerializeToString()

    def fail(self, error: InferdError) -> None:
        """End the call with ``error``."""
        if not self.future.done():
            self.future.set_exception(error)

    def abandon(self) -> None:
        """The client is gone: take back what is still in the dispatcher."""
        if not self.future.cancel() and not self.future.cancelled():
            self.future.exception()  # seen: asyncio would log an error that nobody waits for any more
        if self.request is not None and self._live is not None:
            self._live.dispatcher.cancel(self.request)


@dataclass(frozen=True, slots=True)
class Caller:
    """What an RPC's metadata says of its requests: the client as a quota counts it, and the trace; empty
    where it says nothing."""

    client: str = ""
    traceparent: str = ""
    tracestate: str = ""


class Connection:
    """A stream that sequences came over, and the dispatchers that hold some which end with it."""

    def __init__(self) -> None:
        self.dispatchers: set[Dispatcher] = set()

    def close(self) -> None:
        """It is gone."""
        for dispatcher in self.dispatchers:
            dispatcher.disconnected(self)


_UNNAMED = Caller()


class Inference:
    """The two inference RPCs. ``client_key`` is the metadata key that names a client, empty where nobody asks;
    ``traced`` makes a trace context of traceparent and tracestate, which are empty where the client sent none."""

    def __init__(
        self,
        catalog: Catalog,
        lifecycle: Lifecycle,
        observe: Observer,
        max_pending: int,
        max_pending_bytes: int,
        client_key: str = "",
        traced: Callable[[str, str], TraceContext | None] = lambda _, __: None,
        tensor_limits: codec.TensorLimits = codec.DEFAULT_LIMITS,
        shared_memory: Store | None = None,
    ) -> None:
        self._heads = Heads()
        self._shared_memory = shared_memory
        self._tensor_limits = tensor_limits
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._observe = observe
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._client_key = client_key
        self._traced = traced
        self._streams: set[Stream] = set()
        self._open = 0
        self._finished = asyncio.Event()
        self._finished.set()

    async def model_infer(self, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """One request, one answer."""
        call = self.begin(raw, _deadline(context), wire.alone, self._caller(context), context)
        self._enter()
        try:
            return await call.future
        except asyncio.CancelledError:
            call.abandon()
            raise
        except InferdError as error:
            await status.abort(context, error)
        finally:
            # They refer to each other: left so, what was sent would stay until the garbage collector comes by.
            call.request = None
            self._leave()

    async def model_stream_infer(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """Requests side by side, each answered on its own; see :class:`Stream`.

        Reads from ``context`` rather than from the iterator gRPC offers: reading must be stoppable.
        """
        self._enter()
        context.add_done_callback(lambda _: self._leave())
        if self._lifecycle.phase is Phase.DRAINING:
            await status.abort(context, Draining())
        window = Window(self._max_pending, self._max_pending_bytes)
        connection = Connection()
        begin = partial(self.begin, caller=self._caller(context), context=context, connection=connection)
        stream = Stream(begin, self._catalog, context, _deadline(context), window)
        self._streams.add(stream)
        try:
            complete = await stream.run()
        finally:
            self._streams.discard(stream)
            connection.close()
        if not complete:
            await status.abort(context, Draining())

    @property
    def open_calls(self) -> int:
        """RPCs that have not ended; a stream is one."""
        return self._open

    def end_streams(self) -> None:
        """Read no further on any stream; each ends once what it has taken is answered."""
        for stream in self._streams:
            stream.stop_reading()

    async def finished(self) -> None:
        """Return once no call is open: each has ended, though the answer of the last may be on its way yet."""
        await self._finished.wait()

    def _enter(self) -> None:
        self._open += 1
        self._finished.clear()

    def _leave(self) -> None:
        self._open -= 1
        if not self._open:
            self._finished.set()

    def _caller(self, context: grpc.aio.ServicerContext) -> Caller:
        said: dict[str, str] = {}
        for key, value in context.invocation_metadata() or ():
            if key in (self._client_key, "traceparent", "tracestate"):
                # As HTTP joins what is said more than once.
                said[key] = f"{said[key]},{value}" if key in said else value
        # Who they have proved to be goes before who they say they are.
        client = CALLER.get() or said.get(self._client_key, "")
        if not said and not client:
            return _UNNAMED
        return Caller(client, said.get("traceparent", ""), said.get("tracestate", ""))

    def begin(
        self,
        raw: bytes,
        deadline: int | None,
        wrap: Wrap,
        caller: Caller,
        context: grpc.aio.ServicerContext,
        connection: Connection | None = None,
    ) -> Call:
        """Start what ``raw`` asks for. Whatever goes wrong ends the call and is recorded, here and once.

        ``context`` is that of the RPC, for memory that its client shares. Sequences end with their ``connection``,
        where there is one.
        """
        stages = Stages(received=time.monotonic_ns())
        call = Call(asyncio.get_running_loop().create_future(), wrap)
        trace = self._traced(caller.traceparent, caller.tracestate)
        try:
            self._submit(call, raw, deadline, stages, caller, trace, context, connection)
        except InferdError as error:
            self._refuse(call, error, stages, len(raw), trace)
        except Exception:
            log.exception("request could not be handled")
            self._refuse(call, InternalFault(), stages, len(raw), trace)
        return call

    def _submit(
        self,
        call: Call,
        raw: bytes,
        deadline: int | None,
        stages: Stages,
        caller: Caller,
        trace: TraceContext | None,
        context: grpc.aio.ServicerContext,
        connection: Connection | None,
    ) -> None:
        apart = wire.take_apart(raw)
        known = self._heads.get(apart.head) if apart is not None and self._lifecycle.accepts else None
        route = None
        if apart is not None and known is not None:
            # Before anything is refused: it is counted and answered by these.
            call.message, call.id, call.final_response = known.message, apart.id, known.parameters.final_response
            # Once for each request: which of two versions answers is a matter of turns.
            route = self._catalog.resolve(known.message.model_name, known.message.model_version)
            if self._again(call, known, apart, route, len(raw), deadline, stages, caller, trace):
                return
        call.message = message = codec.parse(raw, pb.ModelInferRequest)
        call.id = message.id
        if self._lifecycle.phase is Phase.STARTING:
            raise ModelUnavailable(one_line(message.model_name, 128), "loading", "the server is starting")
        if not self._lifecycle.accepts:
            raise Draining
        served, live = route or self._catalog.resolve(message.model_name, message.model_version)
        parameters = codec.decode_parameters(message)
        sequence = codec.check_sequence(message.model_name, parameters, live.signature)
        shared = self._shared_memory
        places = None if shared is None else placement.Places(placing(shared, context))
        inputs = codec.decode_inputs(
            message, live.signature, in_sequence=sequence is not None, limits=self._tensor_limits, places=places
        )
        rows = codec.rows(message.model_name, inputs, live.signature, in_sequence=sequence is not None)
        call.final_response = parameters.final_response
        call.bind(served, live)
        step = None
        if sequence is not None:
            step = SequenceStep(sequence, parameters.sequence_start, parameters.sequence_end, connection)
            if connection is not None:
                connection.dispatchers.add(live.dispatcher)
        outputs = codec.decode_outputs(message, live.signature, in_sequence=sequence is not None, places=places)
        kind = live.signature.kind_of(inputs) if live.joins else None
        if apart is not None:
            answered_by = (served.name, str(served.version))
            self._heads.keep(apart, message, live.signature, inputs, outputs, parameters, rows, kind, answered_by)
        request = Request(
            served.name,
            served.version,
            inputs,
            outputs,
            call,
            id=message.id,
            deadline=_earliest(stages.received, deadline, parameters.timeout, live.config.queue.default_timeout),
            priority=parameters.priority,
            nbytes=len(raw),
            batch=rows,
            kind=kind,
            client=caller.client,
            step=step,
            stages=stages,
            trace=trace,
        )
        if places is not None:
            places.note(request)
        call.request = request
        live.dispatcher.submit(request)

    def _again(
        self,
        call: Call,
        known: Known,
        apart: wire.Apart,
        route: tuple[Served, Live],
        nbytes: int,
        deadline: int | None,
        stages: Stages,
        caller: Caller,
        trace: TraceContext | None,
    ) -> bool:
        """Submit a request like one before, which need not be parsed; False where it is not like it after all."""
        served, live = route
        # Asked for as itself: another version's may be equal.
        if known.signature is not live.signature or len(apart.id) > codec.MAX_REQUEST_ID:
            return False
        if (inputs := known.tensors(apart.contents)) is None:
            return False
        parameters = known.parameters
        call.known = known
        call.bind(served, live)
        request = Request(
            served.name,
            served.version,
            inputs,
            known.outputs,
            call,
            id=apart.id,
            deadline=_earliest(stages.received, deadline, parameters.timeout, live.config.queue.default_timeout),
            priority=parameters.priority,
            nbytes=nbytes,
            batch=known.rows,
            kind=known.kind,
            client=caller.client,
            stages=stages,
            trace=trace,
        )
        # Before it is handed over: what runs inline is answered by then.
        call.request = request
        live.dispatcher.submit(request)
        return True

    def _refuse(self, call: Call, error: InferdError, stages: Stages, nbytes: int, trace: TraceContext | None) -> None:
        """A request that never entered a queue still counts, under a model only if that is one of ours."""
        call.request = None
        stages.answered = time.monotonic_ns()
        model, version = OTHER, ""
        try:
            # Whoever it was given to refused it; nobody was chosen yet where it could not be read.
            served = call.served or self._catalog.find(call.message.model_name, call.message.model_version)[0]
            model, version = served.name, str(served.version)
        except UnknownModel:
            pass
        except InferdError:
            model = call.message.model_name
        self._observe(
            Observation(
                model,
                version,
                error.outcome,
                stages,
                id=_shown(call.id),
                error=error,
                received_bytes=nbytes,
                trace=trace,
            )
        )
        call.fail(error)


def _shown(request_id: str) -> str:
    return one_line(request_id, 80)


def _deadline(context: grpc.aio.ServicerContext) -> int | None:
    """The RPC's deadline on the monotonic clock, in nanoseconds."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic_ns() + int(remaining * 1e9)


def _earliest(received: int, deadline: int | None, timeout: int | None, default: float | None) -> int | None:
    """The RPC's deadline or the request's own ``timeout`` (ns), whichever is first; ``default`` (s) if neither."""
    if timeout is not None:
        own = received + timeout
        return own if deadline is None or own < deadline else deadline
    if deadline is not None or default is None:
        return deadline
    return received + int(default * 1e9)
