"""How many connections the metrics port has at once: each has a thread."""

import socket
from contextlib import suppress
from threading import Lock


class Connections:
    """At most ``most`` open ones: for one more, the one that has been open longest is closed.

    A scrape or probe is over in a moment; a connection that lasts is slow, or meant to be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        # Copies: to speak TLS, a connection passes its descriptor on.
        self._open: dict[socket.socket, socket.socket] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def admit(self, connection: socket.socket) -> None:
        """Count ``connection`` in. Raises OSError where there is no descriptor left for it."""
        with self._lock:
            self._open[connection] = connection.dup()
            if len(self._open) > self._most:
                with suppress(OSError):  # gone by itself
                    # Its thread sees the end of it, and forgets it.
                    next(iter(self._open.values())).shutdown(socket.SHUT_RDWR)
                self._forget(next(iter(self._open)))

    def forget(self, connection: socket.socket) -> None:
        """It has ended. Harmless when called again."""
        with self._lock:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        if (copy := self._open.pop(connection, None)) is not None:
            copy.close()
