"""Calls at the server: which are open, and of each who makes it, what it brings, and its answer."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from inferd.transport import core

Metadata = Sequence[tuple[str, str | bytes]]

_ReceiveMessage = core.ReceiveMessageOperation
_SendInitialMetadata = core.SendInitialMetadataOperation
_SendMessage = core.SendMessageOperation
_SendStatus = core.SendStatusFromServerOperation
_ReceiveClose = core.ReceiveCloseOnServerOperation
_OK = core.OK
# gRPC's time for "never" is centuries away.
_NEVER = 1e11
_NANO = 10**9


class OpenCalls:
    """Calls that have arrived and have not ended.

    ``receiving`` has those whose one message was asked for and has not come, the oldest first; ``receiving_streams``
    those that wait for one of many, in the order in which they began to wait. ``left`` is called with a call that its
    client ended before it was answered, or before it had sent its message. While they are ``counted``, ``delivered`` is
    called with each message's call and its bytes.
    """

    __slots__ = ("_none_open", "counted", "delivered", "left", "number", "receiving", "receiving_streams")

    def __init__(self, left: "Callable[[ServerCall], object]" = lambda _: None) -> None:
        self.left = left
        self.counted = False
        self.delivered: Callable[[ServerCall, int], object] = lambda _, __: None
        self.number = 0
        self.receiving: dict[ServerCall, None] = {}
        self.receiving_streams: dict[ServerCall, None] = {}
        self._none_open = asyncio.Event()
        self._none_open.set()

    def arrived(self) -> None:
        """One more is open."""
        self.number += 1
        self._none_open.clear()

    def ended(self, _: Any) -> None:
        """One of them has ended, by an event of gRPC."""
        self.number -= 1
        if not self.number:
            self._none_open.set()

    async def none(self) -> None:
        """Return once none is open."""
        await self._none_open.wait()


class ServerCall:
    """A call that has arrived. Its message is received when :meth:`receive` asks for it, and not before.

    It ends by :meth:`respond`, :meth:`finish` or :meth:`fail`, or when its client leaves, and only once: what comes
    later does nothing. All on the event loop's thread. ``method`` is the name that its client wrote, with a slash in
    front; ``arrived`` when it came, on the monotonic clock in nanoseconds; ``metadata`` what its client sent with it;
    ``principal`` the proven name of its caller, once the gate has set it; ``turned_away`` the error that ended it
    while its message was on the way.
    """

    __slots__ = (
        "_begun",
        "_call",
        "_close_asked",
        "_deadline",
        "_left",
        "_open_calls",
        "_received_then",
        "_receiving",
        "_sent_then",
        "arrived",
        "ended",
        "metadata",
        "method",
        "principal",
        "turned_away",
    )

    def __init__(self, event: Any, open_calls: OpenCalls) -> None:
        """The call of gRPC's ``event``, which is one of ``open_calls`` until it has ended."""
        self.arrived = time.monotonic_ns()
        self._open_calls = open_calls
        self._receiving = open_calls.receiving
        self._call = event.call
        details = event.call_details
        self.method: str = details.method.decode(errors="replace")
        self._deadline: float = details.deadline
        self.metadata: Metadata = event.invocation_metadata
        self.principal = ""
        self.turned_away: Exception | None = None
        self.ended = False
        self._begun = False
        self._close_asked = False
        self._left: Callable[[], object] | None = None
        self._received_then: Callable[[ServerCall, bytes | None], None] | None = None
        self._sent_then: Callable[[bool], None] | None = None

    def time_remaining(self) -> float | None:
        """Seconds until the client stops waiting, negative past that; None if it waits without limit."""
        return None if self._deadline > _NEVER else self._deadline - time.time()

    def deadline(self) -> int | None:
        """When the client stops waiting, on the monotonic clock in nanoseconds; None if it waits without limit."""
        if self._deadline > _NEVER:
            return None
        return time.monotonic_ns() + int((self._deadline - time.time()) * _NANO)

    def peer(self) -> str:
        """The other end of the connection, as gRPC names it: ``ipv4:127.0.0.1:5000``."""
        return core.peer(self._call)

    def peer_identities(self) -> list[bytes]:
        """The names in the client's certificate, which the handshake has verified: its subject alternative names or, if
        it has none, its common name."""
        return core.peer_identities(self._call) or []

    def receive(self, then: "Callable[[ServerCall, bytes | None], None]") -> None:
        """Receive the next message and call ``then`` with it; with None if the client has sent all, or has left, or its
        message is too large. One at a time."""
        self._receiving[self] = None
        self._received_then = then
        self._call.start_server_batch((_ReceiveMessage(0),), self._received)

    def expect_many(self) -> None:
        """The client may send several messages, and take its time between them."""
        self._receiving = self._open_calls.receiving_streams

    def watch(self, left: Callable[[], object]) -> None:
        """Call ``left`` if the call ends before it was answered: the client has left, or its time is up."""
        self._left = left
        if not self._close_asked:
            self._close_asked = True
            self._call.start_server_batch((_ReceiveClose(0),), self._closed)

    def report_end(self) -> None:
        """Tell who watches that the call has ended, though not by them."""
        left, self._left = self._left, None
        if left is not None:
            left()

    def respond(self, message: bytes) -> None:
        """End the call with its one ``message``."""
        self._end((_SendMessage(message, 0), _SendStatus(None, _OK, b"", 0)))

    def finish(self) -> None:
        """End the call without another message."""
        self._end((_SendStatus(None, _OK, b"", 0),))

    def fail(self, code: int, details: str, trailers: Metadata = ()) -> None:
        """End the call with the error of that number."""
        self._end((_SendStatus(trailers, code, details.encode(), 0),))

    def send(self, message: bytes, then: Callable[[bool], None]) -> None:
        """Send one of several messages, and call ``then`` when the next may be sent, with False if the client has left.
        One at a time."""
        self._sent_then = then
        if self._begun:
            self._call.start_server_batch((_SendMessage(message, 0),), self._sent)
        else:
            self._begun = True
            self._call.start_server_batch((_SendInitialMetadata(None, 0), _SendMessage(message, 0)), self._sent)

    async def read(self) -> bytes | None:
        """As :meth:`receive`, for coroutines."""
        received: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self.receive(lambda _, message: None if received.done() else received.set_result(message))
        return await received

    async def write(self, message: bytes) -> None:
        """As :meth:`send`, for coroutines."""
        sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.send(message, lambda good: None if sent.done() else sent.set_result(good))
        await sent

    def _end(self, operations: tuple[Any, ...]) -> None:
        if self.ended:
            return
        self.ended = True
        if not self._begun:
            operations = (_SendInitialMetadata(None, 0), *operations)
        if not self._close_asked:
            # Asked together with the answer, it is no event of its own.
            self._close_asked = True
            operations = (*operations, _ReceiveClose(0))
        self._call.start_server_batch(operations, self._open_calls.ended)

    def _received(self, event: Any) -> None:
        del self._receiving[self]
        message = event.batch_operations[0].message()
        if self._open_calls.counted and message:
            self._open_calls.delivered(self, len(message))
        if message is None and not self.ended and self._receiving is self._open_calls.receiving:
            self._open_calls.left(self)
        then, self._received_then = self._received_then, None
        if then is not None:
            then(self, message)

    def _sent(self, event: Any) -> None:
        then, self._sent_then = self._sent_then, None
        if then is not None:
            then(event.success)

    def _closed(self, event: Any) -> None:
        if self.ended or not event.batch_operations[0].cancelled():
            # It refers back to the call.
            self._left = None
            return
        self.ended = True
        self._open_calls.ended(event)
        self._open_calls.left(self)
        self.report_end()
