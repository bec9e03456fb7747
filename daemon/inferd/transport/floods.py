"""Connections that begin calls only to end them: thousands a second keep a server busy with nothing."""

import structlog

from inferd.transport import connection, http2

log = structlog.get_logger("inferd.transport")

# Calls that the client of one connection may end in a second. A client that sends far more than the server can do, and
# whose deadlines pass, stays below it: most of its calls are refused before.
MOST_A_SECOND = 2000
_SECOND = 10**9
# RFC 9113: the error ENHANCE_YOUR_CALM.
_GOAWAY = http2.goaway(0xB, b"too many calls ended by the client")


class EndedCalls:
    """Counts the calls that clients ended, by connection and second."""

    def __init__(self, most: int = MOST_A_SECOND) -> None:
        self._most = most
        self._since = 0
        self._counts: dict[str, int] = {}
        self.over: set[str] = set()
        """The connections that ended too many of late: what is left of their calls is not worth a look."""

    def count(self, peer: str, now: int) -> bool:
        """Count one of ``peer``, at ``now`` in nanoseconds that never decrease. True once in the second in which it
        ended more than may be: cut the connection off."""
        if now - self._since >= _SECOND:
            self._since = now
            self._counts.clear()
            self.over.clear()
        self._counts[peer] = count = self._counts.get(peer, 0) + 1
        if count != self._most + 1:
            return False
        self.over.add(peer)
        return True

    def __len__(self) -> int:
        """Connections counted in this second."""
        return len(self._counts)


def cut_off(peer: str, *, plain: bool) -> None:
    """Close the connection of ``peer``; without TLS (``plain``) a GOAWAY frame tells it why."""
    try:
        found = connection.close(peer, _GOAWAY if plain else b"")
    except OSError as error:
        log.warning("connection not closed", peer=peer, problem=error.strerror)
        return
    if found:
        log.warning("connection closed: its client ends too many calls", peer=peer, calls_a_second=MOST_A_SECOND)
