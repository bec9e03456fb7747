"""How much of a model's time one client may take by requests that leave the model unfit, and have it made anew."""

from collections import OrderedDict

# A client may spend a quarter of the time so, after a first quarter of a second.
_PART, _AT_FIRST = 4, 250_000_000
# Clients that are remembered, those longest without a failure forgotten first.
_KEPT = 1024


class FailureBudget:
    """Times are nanoseconds of one clock. Clients without a name can't be told apart, and are not held to account."""

    def __init__(self) -> None:
        # When what a client has spent is forgotten, were it to spend no more.
        self._until: OrderedDict[str, int] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until)

    def charge(self, client: str, took: int, now: int) -> None:
        """A request of ``client`` has cost others ``took``."""
        if not client:
            return
        self._until[client] = max(now, self._until.get(client, 0)) + took * _PART
        self._until.move_to_end(client)
        if len(self._until) > _KEPT:
            self._until.popitem(last=False)

    def wait(self, client: str, now: int) -> int:
        """How long ``client`` has to wait until its next request is taken, 0 where it has not."""
        until = self._until.get(client)
        if until is None:
            return 0
        if until <= now:
            del self._until[client]
            return 0
        return max(0, until - now - _AT_FIRST * _PART)
