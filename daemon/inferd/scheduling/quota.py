"""How many requests one client may have in flight, so that none starves the others."""

from collections import Counter


class ClientQuota:
    """Counts requests in flight by client; each may have ``most``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._in_flight: Counter[str] = Counter()

    def exhausted(self, client: str) -> bool:
        """Whether ``client`` has reached its limit."""
        return self._in_flight[client] >= self.most

    def enter(self, client: str) -> None:
        self._in_flight[client] += 1

    def leave(self, client: str) -> None:
        self._in_flight[client] -= 1
        if not self._in_flight[client]:
            del self._in_flight[client]
