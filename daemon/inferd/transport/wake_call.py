"""Events of our own on a completion queue, from any thread.

A batch without operations on a call that has ended completes at once. gRPC has no other way to put an event on a queue;
this one takes a microsecond or two.
"""

import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from inferd.transport import core
from inferd.transport.http2 import Http2Connection, call_headers

Tag = Callable[[Any], object]
"""What is called with its event, by the thread that polls the queue."""

_OK = core.OK
# Seconds for gRPC to do what takes it microseconds.
_PATIENCE = 10.0


class WakeCall:
    """A call that has ended, on ``queue``. Polls the queue until there is one, so no other code may yet.

    Raises RuntimeError if gRPC's core does not behave as described above.
    """

    def __init__(self, queue: core.CompletionQueue) -> None:
        self._queue = queue
        # An abstract address leaves nothing behind; its name can't be guessed, and is taken for milliseconds.
        name = f"inferd-{secrets.token_hex(16)}"
        server = core.Server([("grpc.enable_channelz", 0)], False)  # it is no server for anyone else
        server.register_completion_queue(queue)
        if not server.add_http2_port(f"unix-abstract:{name}".encode()):
            raise RuntimeError("gRPC can't listen on an abstract socket")
        server.start()
        server.request_call(queue, queue, _ignore)
        connection = Http2Connection(f"\0{name}", socket.AF_UNIX)
        try:
            connection.call(call_headers("/inferd/Wake"), b"")
            self._call = self._next().call
            ended = (
                core.SendInitialMetadataOperation(None, 0),
                core.SendStatusFromServerOperation(None, _OK, b"", 0),
                core.ReceiveCloseOnServerOperation(0),
            )
            self._call.start_server_batch(ended, _ignore)
            self._next()
        finally:
            connection.close()
            server.shutdown(queue, _ignore)
            self._next()
        self.post(_ignore)
        if self._next().tag is not _ignore:
            raise RuntimeError("a batch without operations does not complete at once")

    def post(self, tag: Tag) -> None:
        """Have ``tag`` called by the thread that polls the queue. Harmless on any thread."""
        self._call.start_server_batch((), tag)

    def _next(self) -> Any:
        # gRPC's deadlines are times of the wall clock.
        event = self._queue.poll(time.time() + _PATIENCE)
        if event.tag is None:
            raise RuntimeError("gRPC's completion queue stays silent")
        return event


def _ignore(_: object) -> None:
    """A tag for what is of no interest."""
