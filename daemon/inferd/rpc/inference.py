"""ModelInfer and ModelStreamInfer: from the bytes of a request to the bytes of its answer."""

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc
import structlog

from inferd._pb import open_inference_pb2 as pb
from inferd.catalog import Catalog, Live, Served
from inferd.dispatcher import Observer
from inferd.errors import Draining, InferdError, InternalFault, ModelUnavailable, UnknownModel, one_line
from inferd.lifecycle import Lifecycle, Phase
from inferd.metrics.instruments import OTHER
from inferd.requests import Observation, Request, Stages
from inferd.rpc import codec, status
from inferd.tensors import Tensor

log = structlog.get_logger("inferd.rpc")


class Call:
    """One inference on the wire, and its reply slot: the future holds the encoded answer.

    ``wrap`` makes the bytes to send of the answer's message.
    """

    __slots__ = ("_live", "_served", "final_response", "future", "message", "request", "wrap")

    def __init__(self, future: "asyncio.Future[bytes]", wrap: Callable[[pb.ModelInferResponse], bytes]) -> None:
        self.future = future
        self.wrap = wrap
        self.message = pb.ModelInferRequest()
        self.request: Request | None = None
        self.final_response = False
        self._served: Served | None = None
        self._live: Live | None = None

    def bind(self, served: Served, live: Live) -> None:
        """The model version that answers."""
        self._served, self._live = served, live

    def answer(self, outputs: Sequence[Tensor]) -> None:
        """Encode now: the outputs are views that the slot's next run overwrites."""
        if self.future.done() or self.request is None or self._served is None or self._live is None:
            return
        specs = [self._live.signature.outputs[i] for i in self.request.outputs]
        response = codec.encode(self._served.name, str(self._served.version), self.request.id, specs, outputs)
        if self.final_response:
            response.parameters["triton_final_response"].bool_param = True
        self.future.set_result(self.wrap(response))

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


class Inference:
    """The two inference RPCs."""

    def __init__(self, catalog: Catalog, lifecycle: Lifecycle, observe: Observer, max_pending: int) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._observe = observe
        self._max_pending = max_pending
        self._streams: set[Stream] = set()
        self._open = 0
        self._finished = asyncio.Event()
        self._finished.set()

    async def model_infer(self, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """One request, one answer."""
        self._enter(context)
        call = self.begin(raw, _deadline(context), pb.ModelInferResponse.SerializeToString)
        try:
            return await call.future
        except asyncio.CancelledError:
            call.abandon()
            raise
        except InferdError as error:
            await status.abort(context, error)

    async def model_stream_infer(self, _: object, context: grpc.aio.ServicerContext) -> None:
        """Requests side by side, each answered on its own; see :class:`Stream`.

        Reads from ``context`` rather than from the iterator gRPC offers: reading must be stoppable.
        """
        self._enter(context)
        if self._lifecycle.phase is Phase.DRAINING:
            await status.abort(context, Draining())
        stream = Stream(self, context, self._max_pending)
        self._streams.add(stream)
        try:
            complete = await stream.run()
        finally:
            self._streams.discard(stream)
        if not complete:
            await status.abort(context, Draining())

    def end_streams(self) -> None:
        """Read no further on any stream; each ends once what it has taken is answered."""
        for stream in self._streams:
            stream.stop_reading()

    async def finished(self) -> None:
        """Return once no call is open: each has ended and its answer is on the wire."""
        await self._finished.wait()

    def _enter(self, context: grpc.aio.ServicerContext) -> None:
        self._open += 1
        self._finished.clear()
        context.add_done_callback(self._leave)

    def _leave(self, _: grpc.aio.ServicerContext) -> None:
        self._open -= 1
        if not self._open:
            self._finished.set()

    def begin(self, raw: bytes, deadline: int | None, wrap: Callable[[pb.ModelInferResponse], bytes]) -> Call:
        """Start what ``raw`` asks for. Whatever goes wrong ends the call and is recorded, here and once."""
        stages = Stages(received=time.monotonic_ns())
        call = Call(asyncio.get_running_loop().create_future(), wrap)
        try:
            self._submit(call, raw, deadline, stages)
        except InferdError as error:
            self._refuse(call, error, stages)
        except Exception:
            log.exception("request could not be handled")
            self._refuse(call, InternalFault(), stages)
        return call

    def _submit(self, call: Call, raw: bytes, deadline: int | None, stages: Stages) -> None:
        call.message = message = codec.parse(raw, pb.ModelInferRequest)
        if self._lifecycle.phase is Phase.STARTING:
            raise ModelUnavailable(one_line(message.model_name, 128), "loading", "the server is starting")
        if not self._lifecycle.accepts:
            raise Draining
        served, live = self._catalog.resolve(message.model_name, message.model_version)
        parameters = codec.decode_parameters(message)
        inputs = codec.decode_inputs(message, live.signature)
        codec.check_batch(message.model_name, inputs, live.signature)
        call.final_response = parameters.final_response
        call.bind(served, live)
        request = Request(
            served.name,
            served.version,
            inputs,
            codec.decode_outputs(message, live.signature),
            call,
            id=message.id,
            deadline=_earliest(stages.received, deadline, parameters.timeout, live.config.queue.default_timeout),
            priority=parameters.priority,
            nbytes=len(raw),
            batch=codec.rows(inputs, live.signature),
            stages=stages,
        )
        live.dispatcher.submit(request)
        call.request = request

    def _refuse(self, call: Call, error: InferdError, stages: Stages) -> None:
        """A request that never entered a queue still counts, under a model only if that is one of ours."""
        stages.answered = time.monotonic_ns()
        model, version = OTHER, ""
        try:
            served, _ = self._catalog.resolve(call.message.model_name, call.message.model_version)
            model, version = served.name, str(served.version)
        except UnknownModel:
            pass
        except InferdError:
            model = call.message.model_name
        self._observe(Observation(model, version, error.outcome, stages, id=_shown(call.message.id), error=error))
        call.fail(error)


class Stream:
    """One ModelStreamInfer call: a reader that starts requests, a writer that sends answers.

    At most ``max_pending`` requests are unanswered or unsent; beyond that the stream is
    read no further, and HTTP/2 flow control holds the client back.
    """

    def __init__(self, inference: Inference, context: grpc.aio.ServicerContext, max_pending: int) -> None:
        self._inference = inference
        self._context = context
        self._unordered = dict(context.invocation_metadata() or ()).get("inferd-unordered") == "true"
        self._room = asyncio.Semaphore(max_pending)
        # In ordered streams a call is put here when it begins, in unordered ones when it ends.
        self._answers: asyncio.Queue[Call | None] = asyncio.Queue()
        self._outstanding: set[Call] = set()
        self._reader: asyncio.Task[None] | None = None

    async def run(self) -> bool:
        """Answer all that is read; True when that is all the client had to send, False when reading was stopped."""
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._answers.put_nowait(None))
        try:
            await self._write()
        finally:
            self._reader.cancel()
            for call in list(self._outstanding):
                call.abandon()
        return not self._reader.cancelled()

    def stop_reading(self) -> None:
        """Take no further request."""
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        deadline = _deadline(self._context)
        while True:
            await self._room.acquire()
            raw = await self._context.read()
            if raw is grpc.aio.EOF:
                return
            call = self._inference.begin(raw, deadline, _in_stream)
            self._outstanding.add(call)
            if self._unordered:
                call.future.add_done_callback(lambda _, call=call: self._answers.put_nowait(call))  # type: ignore[misc]
            else:
                self._answers.put_nowait(call)

    async def _write(self) -> None:
        reading = True
        while reading or self._outstanding:
            call = await self._answers.get()
            if call is None:
                reading = False
                continue
            try:
                answer = await call.future
            except InferdError as error:
                answer = _error_in_stream(call, error)
            await self._context.write(answer)
            self._outstanding.discard(call)
            self._room.release()


def _in_stream(response: pb.ModelInferResponse) -> bytes:
    return pb.ModelStreamInferResponse(infer_response=response).SerializeToString()


def _error_in_stream(call: Call, error: InferdError) -> bytes:
    """A request's own failure; clients that show only the text still learn code and id."""
    message = call.message
    whose = f" request '{_shown(message.id)}'" if message.id else ""
    response = pb.ModelInferResponse(model_name=message.model_name, model_version=message.model_version, id=message.id)
    if call.final_response:
        response.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(
        error_message=f"[{status.code_of(error).name}]{whose}: {error}", infer_response=response
    ).SerializeToString()


def _shown(request_id: str) -> str:
    return one_line(request_id, 80)


def _deadline(context: grpc.aio.ServicerContext) -> int | None:
    """The RPC's deadline on the monotonic clock, in nanoseconds."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic_ns() + int(remaining * 1e9)


def _earliest(received: int, deadline: int | None, timeout: int | None, default: float | None) -> int | None:
    """The RPC's deadline or the request's own ``timeout`` (ns), whichever is first; ``default`` (s) if neither."""
    own = received + timeout if timeout is not None else None
    given = [d for d in (deadline, own) if d is not None]
    if given:
        return min(given)
    return None if default is None else received + int(default * 1e9)
