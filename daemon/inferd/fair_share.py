"""How much of what all clients share one of them may hold."""


def fair_share(capacity: int, others: int) -> int:
    """Of ``capacity`` units, of which other clients hold ``others``: three quarters of the rest, at least one unit.

    So a client that is alone may use most of what there is, and a newcomer finds room all the same. Clients that take
    all they may end up with equal parts; nothing that is held is ever taken away.
    """
    return max(1, (capacity - others) * 3 // 4)
