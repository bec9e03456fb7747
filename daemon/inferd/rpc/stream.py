"""One ModelStreamInfer call: concurrent requests, and a limit on what it may have in flight."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import grpc

from inferd._pb import open_inference_pb2 as pb
from inferd.disclosure import client_message
from inferd.errors import InferdError, one_line
from inferd.requests import Request
from inferd.rpc import codec, status, wire

# Characters of a model's name or version in an error about an unknown one: names are never longer.
_MAX_ECHOED = 128


class StreamWindow:
    """What one stream has in flight, in requests and in bytes on the wire.

    A request counts its own bytes and a reserve for its response until it is answered, and
    its response's bytes until that is sent. The reserve is the response's size if that is
    known, otherwise the model's largest response so far, otherwise all of ``max_bytes``: until a
    model's first response is there, no more requests are accepted.

    The window is open below both limits, so ``bytes`` is at most ``max_bytes``, one request
    and its response; but when responses of unknown size grow, those already in flight may
    exceed their reserves.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._largest: dict[str, int] = {}
        self.requests = 0
        self.bytes = 0

    @property
    def open(self) -> bool:
        """Whether one more request may be accepted; always true with nothing in flight."""
        return self.requests < self._max_requests and self.bytes < self._max_bytes

    def take(self, model: str, nbytes: int, answer: int | None) -> int:
        """Count a request; ``answer`` is the size of its response if known. Returns what it counts until answered."""
        counted = nbytes + (self._largest.get(model, self._max_bytes) if answer is None else answer)
        self.requests += 1
        self.bytes += counted
        return counted

    def take_answered(self, answer: int) -> None:
        """Count a request that is already answered."""
        self.requests += 1
        self.bytes += answer

    def answered(self, model: str, counted: int, answer: int) -> None:
        """The response is there, and replaces the ``counted`` bytes."""
        self._largest[model] = max(answer, self._largest.get(model, 0))
        self.failed(counted, answer)

    def failed(self, counted: int, answer: int) -> None:
        """Likewise for an error, which says nothing about the size of the model's responses."""
        self.bytes += answer - counted

    def sent(self, answer: int) -> None:
        """The response has been sent."""
        self.requests -= 1
        self.bytes -= answer


class PendingCall(Protocol):
    """An inference as its stream sees it: ``future`` holds the bytes to send."""

    future: "asyncio.Future[bytes]"
    message: pb.ModelInferRequest
    id: str
    request: Request | None
    final_response: bool

    @property
    def answer_bytes(self) -> int | None:
        """Bytes of tensors in its response, None if that is open."""

    def abandon(self) -> None:
        """The client has left."""


Begin = Callable[[bytes, Callable[[Iterable[wire.Part], int], bytes]], PendingCall]


class InferStream:
    """One ModelStreamInfer call: a reader that starts requests, a writer that sends responses.

    While ``window`` is closed the stream is not read, and HTTP/2 flow control holds
    the client back: a slow reader costs the daemon what the window allows, and costs other
    streams nothing. Requests are freed when they are answered, responses when they are
    sent, that is when all but the last 64 KiB are on the wire.

    Copies come on top of the window's bytes: a request in flight is held as message and as
    tensors, twice its size in total, and gRPC has a copy of the one response it is sending. gRPC
    also receives ahead: unread requests take up to the HTTP/2 window of the
    stream, which gRPC widens to some 15 MiB for a fast client.
    """

    def __init__(self, begin: Begin, context: grpc.aio.ServicerContext, window: StreamWindow) -> None:
        self._begin = begin
        self._context = context
        self._window = window
        self._unordered = dict(context.invocation_metadata() or ()).get("inferd-unordered") == "true"
        self._room = asyncio.Event()
        # In the order to send them: a response gets its place when its request is accepted, in
        # unordered streams when it is there. None once no more requests will be accepted.
        self._answers: asyncio.Queue[asyncio.Future[bytes] | bytes | None] = asyncio.Queue()
        self._unanswered: set[PendingCall] = set()
        self._reader: asyncio.Task[None] | None = None

    async def run(self) -> bool:
        """Answer all that is read; True if the client has sent all its requests, False if reading was stopped."""
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._answers.put_nowait(None))
        try:
            while self._window.requests or not self._reader.done():
                await self._send(await self._answers.get())
        finally:
            self._reader.cancel()
            for call in list(self._unanswered):
                call.abandon()
            # The traceback of what ended it refers to this stream: it may outlive its responses by far.
            self._answers = asyncio.Queue()
        return not self._reader.cancelled()

    def stop_reading(self) -> None:
        """Accept no more requests."""
        if self._reader is not None:
            self._reader.cancel()

    # No variable of a coroutine may keep a message alive while it waits for the next.

    async def _read(self) -> None:
        while self._take(await self._next()):
            pass

    async def _next(self) -> bytes:
        while not self._window.open:
            self._room.clear()
            await self._room.wait()
        return await self._context.read()  # type: ignore[no-any-return]

    def _take(self, raw: bytes) -> bool:
        if raw is grpc.aio.EOF:
            return False
        call = self._begin(raw, wire.as_stream)
        if call.future.done():
            self._answered_at_once(call)
            return True
        counted = self._window.take(call.message.model_name, len(raw), call.answer_bytes)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if not self._unordered:
            self._answers.put_nowait(answer)
        self._unanswered.add(call)
        call.future.add_done_callback(partial(self._answered, call, counted, answer))
        return True

    def _answered_at_once(self, call: PendingCall) -> None:
        """Refused, or run inline: there is nothing to wait for, so the response takes its place directly."""
        answer, _ = _result_of(call)
        self._window.take_answered(len(answer))
        self._answers.put_nowait(answer)

    def _answered(
        self, call: PendingCall, counted: int, answer: "asyncio.Future[bytes]", future: "asyncio.Future[bytes]"
    ) -> None:
        if future.cancelled() or answer.cancelled():
            call.request = None
            return
        self._unanswered.discard(call)
        encoded, good = _result_of(call)
        answer.set_result(encoded)
        if good:
            self._window.answered(call.message.model_name, counted, len(encoded))
        else:
            self._window.failed(counted, len(encoded))
        if self._unordered:
            self._answers.put_nowait(answer)
        self._show_room()

    async def _send(self, answer: "asyncio.Future[bytes] | bytes | None") -> None:
        if answer is None:
            return
        if not isinstance(answer, bytes):
            answer = await answer
        await self._context.write(answer)
        self._window.sent(len(answer))
        self._show_room()

    def _show_room(self) -> None:
        if self._window.open:
            self._room.set()


def _result_of(call: PendingCall) -> tuple[bytes, bool]:
    """The response of ``call``, which has ended, and whether it is not an error."""
    # They refer to each other: without this, the response would stay until the garbage collector runs.
    call.request = None
    if isinstance(error := call.future.exception(), InferdError):
        return _error_in_stream(call, error), False
    return call.future.result(), True


def _error_in_stream(call: PendingCall, error: InferdError) -> bytes:
    """A request's own failure; clients that only show the text still get code and id."""
    message = call.message
    whose = f" request '{one_line(call.id, 80)}'" if call.id else ""
    # Shortened, as their length may be what is wrong with the request.
    response = pb.ModelInferResponse(
        model_name=message.model_name[:_MAX_ECHOED],
        model_version=message.model_version[:_MAX_ECHOED],
        id=call.id[: codec.MAX_REQUEST_ID],
    )
    if call.final_response:
        response.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(
        error_message=f"[{status.code_of(error).name}]{whose}: {client_message(error)}", infer_response=response
    ).SerializeToString()
