"""How much of a model's time one client may cost with requests that leave the model unfit, so that it is rebuilt."""

from collections import OrderedDict

# A client may spend a quarter of the time this way, after a first quarter of a second.
_PART, _AT_FIRST = 4, 250_000_000
# Clients remembered; those longest without a failure are forgotten first.
_KEPT = 1024


class FailureBudget:
    """Times are nanoseconds of one clock. Clients without a name can't be told apart, and have no budget."""

    def __init__(self) -> None:
        # When a client's spending is forgotten if it spends no more.
        self._until: OrderedDict[str, int] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until)

    def charge(self, client: str, took: int, now: int) -> None:
        """A request of ``client`` has cost other clients ``took``."""
        if not client:
            return
        self._until[client] = max(now, self._until.get(client, 0)) + took * _PART
        self._until.move_to_end(client)
        if len(self._until) > _KEPT:
            self._until.popitem(last=False)

    def wait(self, client: str, now: int) -> int:
        """How long until the next request of ``client`` is accepted, 0 for now."""
        until = self._until.get(client)
        if until is None:
            return 0
        if until <= now:
            del self._until[client]
            return 0
        return max(0, until - now - _AT_FIRST * _PART)
