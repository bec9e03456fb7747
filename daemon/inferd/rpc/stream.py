"""One ModelStreamInfer call: concurrent requests, and a limit on what it may have in flight."""

from collections import deque
from collections.abc import Callable

from inferd._pb import open_inference_pb2 as pb
from inferd.disclosure import client_message
from inferd.errors import Draining, InferdError, one_line
from inferd.rpc import status, wire
from inferd.rpc.call import InferCall
from inferd.rpc.parameters import MAX_REQUEST_ID
from inferd.transport.call import ServerCall

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


Begin = Callable[..., InferCall]


class InferStream:
    """One ModelStreamInfer call: starts requests as they arrive, and sends responses one after the other.

    While ``window`` is closed the stream is not read, and HTTP/2 flow control holds
    the client back: a slow reader costs the daemon what the window allows, and costs other
    streams nothing. Requests are freed when they are answered, responses when they are
    sent, that is when all but the last 64 KiB are on the wire.

    Copies come on top of the window's bytes: a request in flight is held as message and as
    tensors, twice its size in total, and gRPC has a copy of the one response it is sending. gRPC
    also receives ahead: unread requests take up to the HTTP/2 window of the
    stream, which gRPC widens to some 15 MiB for a fast client.

    ``begin`` starts a request's inference, for this stream. ``ended`` is called once, with this stream.
    """

    def __init__(
        self, begin: Begin, server_call: ServerCall, *, window: StreamWindow, ended: "Callable[[InferStream], None]"
    ) -> None:
        self._begin = begin
        self._server_call = server_call
        self._window = window
        self._ended = ended
        self._unordered = dict(server_call.metadata).get("inferd-unordered") == "true"
        # In the order to send them: a response gets its place when its request is accepted, in
        # unordered streams when it is there.
        self._responses: deque[_Place] = deque()
        self._unanswered: set[_Place] = set()
        # Whether a message is asked for, and whether one is being sent.
        self._reading = self._sending = False
        # Whether the client has sent all its requests, and whether more are read.
        self._complete, self._reads = False, True
        self._gone = False
        server_call.watch(self._left)

    def read(self) -> None:
        """Ask for the next request, as far as the window allows."""
        if self._reads and not self._reading and self._window.open:
            self._reading = True
            self._server_call.receive(self._received)

    def stop_reading(self) -> None:
        """Accept no more requests."""
        self._reads = False
        self._finish()

    def _received(self, _: ServerCall, raw: bytes | None) -> None:
        self._reading = False
        if not self._reads or self._gone:
            return
        if raw is None:
            self._reads, self._complete = False, True
            self._finish()
            return
        place = _Place(self)
        if not self._unordered:
            self._responses.append(place)
        call = self._begin(raw, wire.as_stream, recipient=place)
        if not call.ended:
            place.call = call
            place.counted = self._window.take(call.message.model_name, len(raw), call.answer_bytes)
            self._unanswered.add(place)
        self.read()

    def answered(self, place: "_Place", model: str, *, good: bool) -> None:
        """The response of ``place`` is there, or its error."""
        if self._gone:
            return
        nbytes = len(place.encoded)
        if place.call is None:
            # Refused, or run inline: it was answered before it counted.
            self._window.take_answered(nbytes)
        else:
            place.call = None
            self._unanswered.discard(place)
            if good:
                self._window.answered(model, place.counted, nbytes)
            else:
                self._window.failed(place.counted, nbytes)
        if self._unordered:
            self._responses.append(place)
        self._send()
        self.read()

    def _send(self) -> None:
        """Send the next response, if it is there."""
        if not self._sending and self._responses and self._responses[0].ready:
            self._sending = True
            self._server_call.send(self._responses[0].encoded, self._sent)

    def _sent(self, good: bool) -> None:
        self._sending = False
        if self._gone or not good:
            return  # the client has left
        self._window.sent(len(self._responses.popleft().encoded))
        self._send()
        self.read()
        self._finish()

    def _finish(self) -> None:
        """End the call once all that was read is answered."""
        if self._reads or self._gone or self._window.requests or self._responses:
            return
        self._gone = True
        if self._complete:
            self._server_call.finish()
        else:
            status.fail(self._server_call, Draining())
        self._ended(self)

    def _left(self) -> None:
        """The client is gone."""
        if self._gone:
            return
        self._gone = True
        for place in self._unanswered:
            # They refer to each other: without this, both would stay until the garbage collector runs.
            call, place.call = place.call, None
            if call is not None:
                call.abandon()
        self._unanswered.clear()
        self._responses.clear()
        self._ended(self)


class _Place:
    """The place of one response in a stream: its recipient. ``call`` is the inference while it counts as unanswered."""

    __slots__ = ("_stream", "call", "counted", "encoded", "ready")

    def __init__(self, stream: InferStream) -> None:
        self._stream = stream
        self.call: InferCall | None = None
        self.counted = 0
        self.encoded = b""
        self.ready = False

    def respond(self, call: InferCall, encoded: bytes) -> None:
        self.encoded, self.ready = encoded, True
        self._stream.answered(self, call.message.model_name, good=True)

    def refuse(self, call: InferCall, error: InferdError) -> None:
        self.encoded, self.ready = _error_in_stream(call, error), True
        self._stream.answered(self, call.message.model_name, good=False)


def _error_in_stream(call: InferCall, error: InferdError) -> bytes:
    """A request's own failure; clients that only show the text still get code and id."""
    message = call.message
    whose = f" request '{one_line(call.id, 80)}'" if call.id else ""
    # Shortened, as their length may be what is wrong with the request.
    response = pb.ModelInferResponse(
        model_name=message.model_name[:_MAX_ECHOED],
        model_version=message.model_version[:_MAX_ECHOED],
        id=call.id[:MAX_REQUEST_ID],
    )
    if call.final_response:
        response.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(
        error_message=f"[{status.code_of(error).name}]{whose}: {client_message(error)}", infer_response=response
    ).SerializeToString()
