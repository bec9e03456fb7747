"""How much of messages on their way a process holds: what has arrived and was not delivered, by connection."""

from collections.abc import Mapping


class HeldBytes:
    """Counts the bytes of connections that have a call whose message is long on its way.

    What arrived before a connection was first looked at was mostly delivered long ago. Of that, as much counts as the
    process has grown by meanwhile. More may arrive on such a connection than that message: headers, and messages of
    other calls, which are taken off when they are delivered.
    """

    def __init__(self) -> None:
        # By connection: what had arrived when it was first looked at, and what was delivered since then.
        self._counted: dict[str, list[int]] = {}

    def __bool__(self) -> bool:
        """Whether any connection is counted."""
        return bool(self._counted)

    def look(self, received: Mapping[str, int], grown: int = 0) -> dict[str, int]:
        """Bytes held by connection, where ``received`` says what has arrived on each, and ``grown`` by how many bytes
        the process has grown since the last look. Connections that ``received`` leaves out are forgotten."""
        new = {peer: nbytes for peer, nbytes in received.items() if peer not in self._counted}
        part = min(1.0, max(0, grown) / max(1, sum(new.values())))
        self._counted = {
            peer: self._counted.get(peer) or [nbytes - int(nbytes * part), 0] for peer, nbytes in received.items()
        }
        return {peer: max(0, received[peer] - first - done) for peer, (first, done) in self._counted.items()}

    def delivered(self, peer: str, nbytes: int) -> None:
        """A message of ``nbytes`` was delivered on the connection of ``peer``."""
        if (counted := self._counted.get(peer)) is not None:
            counted[1] += nbytes


def excess(held: Mapping[str, int], budget: int) -> list[str]:
    """The connections to turn away so that the others hold no more than ``budget``: those that hold the most."""
    total, chosen = sum(held.values()), []
    for peer, nbytes in sorted(held.items(), key=lambda one: one[1], reverse=True):
        if total <= budget:
            break
        chosen.append(peer)
        total -= nbytes
    return chosen
