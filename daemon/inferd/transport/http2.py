"""A client's calls in as few bytes of HTTP/2 as they need, made and sent without gRPC and without a thread."""

import socket
import struct

# Types and flags of HTTP/2 frames, RFC 9113.
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0x0, 0x1, 0x4, 0x6, 0x7
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_FRAME_HEAD = 9


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


def goaway(error: int, why: bytes) -> bytes:
    """The frame that tells the other side to make no more calls on the connection, by an ``error`` of RFC 9113."""
    return _frame(_GOAWAY, 0, 0, struct.pack(">II", 0, error) + why)


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
