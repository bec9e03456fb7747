"""Calls that inferd makes to itself, to measure how long calls wait in gRPC before a handler runs.

They come over a socket in a folder that only this user can open, for a method whose name only this process knows,
and wait in the same queue as all other calls: a server has one. A thread sends them, even while the event loop is
blocked. gRPC's own client would take the interpreter's lock several times between the time stamp and the wire, for
milliseconds each on a busy server. So the few bytes of HTTP/2 that a call needs are our own (transport/http2), and
leave with the first system call after the time stamp.
"""

import os
import secrets
import struct
import tempfile
import threading
import time
from collections.abc import Callable

import structlog

from inferd.errors import one_line
from inferd.metrics.histogram import Histogram
from inferd.metrics.instruments import ACCEPT_WAIT_BUCKETS
from inferd.scheduling.accept_wait import AcceptWait
from inferd.transport.call import ServerCall
from inferd.transport.http2 import Http2Connection, call_headers
from inferd.transport.server import GrpcServer

log = structlog.get_logger("inferd.rpc")

_NANO = 10**9

# When the probe was sent, on the monotonic clock.
_STAMP = struct.Struct(">q")


class AcceptWaitProbe:
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
        self._socket: int | None = None
        self._path = ""
        self._connection: Http2Connection | None = None
        # Guards ``wait``, which the thread and the event loop's thread use.
        self._wait_lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="accept-wait-probe", daemon=True)

    def takes(self, method: str, call: ServerCall) -> bool:
        """Whether ``call`` of ``method`` is a probe; it is answered then."""
        if method != self._method:
            return False
        call.receive(self._arrived)
        return True

    def bind(self, server: GrpcServer) -> None:
        """Make ``server`` listen on the socket too."""
        try:
            with tempfile.TemporaryDirectory(prefix="inferd-") as folder:
                path = f"{folder}/grpc"
                if not server.listen(f"unix:{path}"):
                    raise OSError("gRPC can't listen there")
                # The socket without its name: no process but this one finds it, and a killed one leaves nothing.
                self._socket = os.open(path, os.O_PATH | os.O_CLOEXEC)
                self._path = f"/proc/self/fd/{self._socket}"
        except OSError as error:
            # For example a path that is too long for a socket, about a hundred characters.
            log.warning("accept wait not measured", problem=one_line(f"no socket in TMPDIR: {error}"))

    def start(self) -> None:
        """Send probes from when the server answers."""
        if self._path:
            self._thread.start()

    def stop(self) -> None:
        """Stop sending. Harmless when called again, or without a start."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._clean()

    def _clean(self) -> None:
        if self._socket is not None:
            os.close(self._socket)
            self._socket = None

    def _arrived(self, call: ServerCall, raw: bytes | None) -> None:
        now = time.monotonic_ns()
        # Answered with a status but no message: so the client has no flow control to maintain.
        call.finish()
        if raw is None:
            return
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
