"""Which calls may be judged before their message is received."""

# One in so many that would be refused is received all the same: it may be more urgent than the others.
_RECEIVED_ANYWAY = 16


class UnreadCalls:
    """What a scheduler knows of calls that it has no request of yet. ``prioritised`` once any request had a priority:
    then a call may have one as well, and a message that is not received can't say so. ``suspected`` while the last
    request was refused: to judge a call costs as much as a part of answering it."""

    def __init__(self) -> None:
        self.prioritised = False
        self.suspected = False
        self._refusals = 0

    def refuses(self) -> bool:
        """Whether to refuse a call that would be refused if its request had no priority."""
        self._refusals += 1
        return not self.prioritised and self._refusals % _RECEIVED_ANYWAY > 0
