"""How much of a shared capacity one client may hold."""


def fair_share(capacity: int, others: int) -> int:
    """The part of ``capacity`` units for one client while other clients hold ``others``: three quarters of the rest, at
    least one unit.

    So a client that is alone may use most of the capacity, and a newcomer still finds room. Clients that take
    all they may end up with equal parts; no unit in use is ever taken away.
    """
    return max(1, (capacity - others) * 3 // 4)
