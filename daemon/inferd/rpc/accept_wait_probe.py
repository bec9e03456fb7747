"""Calls that inferd makes to itself, to measure how long calls wait in gRPC before a handler runs.

They come over a socket in a folder that only this user can open, for a method whose name only this process knows,
and wait in the same queue as all other calls: a server has one. A thread sends them, even while the event loop is
blocked. gRPC's own client would take the interpreter's lock several times between the time stamp and the wire, for
milliseconds each on a busy server. So the few bytes of HTTP/2 that a call needs are made here, and leave with the first
system call after the time stamp.
"""

import secrets
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable

import grpc
import structlog

from inferd.errors import one_line
from inferd.metrics.histogram import Histogram
from inferd.metrics.instruments import ACCEPT_WAIT_BUCKETS
from inferd.scheduling.accept_wait import AcceptWait

log = structlog.get_logger("inferd.rpc")

_NANO = 10**9

# Types and flags of HTTP/2 frames, RFC 9113.
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0x0, 0x1, 0x4, 0x6, 0x7
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_FRAME_HEAD = 9

# When the probe was sent, on the monotonic clock.
_STAMP = struct.Struct(">q")


class AcceptWaitProbe(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """The socket, the thread that sends probes, and the handler that receives them; reports each to ``wait``.

    ``busy`` says whether calls are open. Without a socket there are no probes, and ``wait`` stays 0.
    """

    def __init__(self, wait: AcceptWait, busy: Callable[[], bool]) -> None:
        self.waits = Histogram(ACCEPT_WAIT_BUCKETS, _NANO)
        """How long each probe has waited."""
        self._wait = wait
        self._busy = busy
        # No client can guess it: a similar name is a method that does not exist.
        self._method = f"/inferd.AcceptWaitProbe/{secrets.token_hex(16)}"
        self._headers = call_headers(self._method)
        self._handler = grpc.unary_stream_rpc_method_handler(self._arrive)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._path = ""
        self._connection: Http2Connection | None = None
        # Guards ``wait``, which the thread and the event loop's thread use.
        self._wait_lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="accept-wait-probe", daemon=True)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """As :meth:`Service.service`; must be asked last."""
        return self._handler if details.method == self._method else None

    def bind(self, server: grpc.aio.Server) -> None:
        """Make ``server`` listen on the socket too."""
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="inferd-")
            self._path = f"{self._folder.name}/grpc"
            server.add_insecure_port(f"unix:{self._path}")
        except (OSError, RuntimeError) as error:
            # For example a path that is too long for a socket, about a hundred characters.
            log.warning("accept wait not measured", problem=one_line(f"no socket in TMPDIR: {error}"))
            self._clean()

    def start(self) -> None:
        """Send probes from when the server answers."""
        if self._folder is not None:
            self._thread.start()

    def stop(self) -> None:
        """Stop sending. Harmless when called again, or without a start."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._clean()

    def _clean(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    async def _arrive(self, raw: bytes, _: grpc.aio.ServicerContext) -> None:
        # Answered with a status but no message: so the client has no flow control to maintain.
        now = time.monotonic_ns()
        (sent,) = _STAMP.unpack(raw)
        with self._wait_lock:
            waited = self._wait.arrived(sent, now)
        if waited is not None:
            self.waits.add(waited)

    def _run(self) -> None:
        while not self._stopped.wait(self._wait.pause / _NANO):
            try:
                self._look()
            except OSError as error:
                # The server closes this connection like any other, at its age. The next look makes a new one.
                log.debug("accept-wait probe connection ended", problem=str(error))
                self._disconnect()
        self._disconnect()

    def _look(self) -> None:
        with self._wait_lock:
            self._wait.look(now := time.monotonic_ns())
            if not self._wait.wanted(now, busy=self._busy()):
                return
        if self._connection is None:
            self._connection = Http2Connection(self._path)
        self._connection.read()
        with self._wait_lock:
            self._wait.sent(now := time.monotonic_ns())
        self._connection.call(self._headers, _STAMP.pack(now))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with self._wait_lock:
            self._wait.lost()


class Http2Connection:
    """A client's side of a connection to ``address``, of that ``family``: makes calls and ignores the responses.

    Never blocks once it is connected. All methods raise OSError, also if the server wants no more calls on it.
    """

    def __init__(self, address: str | tuple[str, int], family: int = socket.AF_UNIX) -> None:
        self._stream = 1
        self._unread = bytearray()
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.connect(address)
            self._socket.setblocking(False)
            self._send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        except OSError:
            self._socket.close()
            raise

    def call(self, headers: bytes, message: bytes) -> None:
        """Make the call that ``headers`` begin (see :func:`call_headers`) with that ``message``."""
        stream, self._stream = self._stream, self._stream + 2
        self._send(
            _frame(_HEADERS, _END_HEADERS, stream, headers)
            + _frame(_DATA, _END_STREAM, stream, struct.pack(">?I", False, len(message)) + message)
        )

    def read(self) -> None:
        """Read what has arrived, and reply where a client must."""
        try:
            while data := self._socket.recv(65536):
                self._unread += data
            raise ConnectionResetError("closed by the server")
        except BlockingIOError:
            pass
        while len(self._unread) >= _FRAME_HEAD:
            end = _FRAME_HEAD + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < end:
                return
            kind, flags, payload = self._unread[3], self._unread[4], bytes(self._unread[_FRAME_HEAD:end])
            del self._unread[:end]
            if kind == _GOAWAY:
                raise ConnectionResetError("the server wants no more calls on it")
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._send(_frame(kind, _ACK, 0, payload if kind == _PING else b""))

    def close(self) -> None:
        """Close the connection; unanswered calls end."""
        self._socket.close()

    def _send(self, data: bytes) -> None:
        if self._socket.send(data) < len(data):
            raise ConnectionAbortedError("the server reads nothing")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame as sent over the wire."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def call_headers(method: str) -> bytes:
    """The headers of a call of ``method``, in HPACK (RFC 7541) as headers that are in no table."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())


def _text(text: str) -> bytes:
    """``text`` must have fewer than 127 characters, as all texts here do."""
    return bytes((len(text),)) + text.encode()
