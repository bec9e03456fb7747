"""The loads of a run, one after another: ``8``, ``1,4,16``, ``1:32:2x`` or ``100:1000:100``."""

from decimal import Decimal, InvalidOperation

_MOST = 100


def parse(text: str, *, whole: bool = False) -> tuple[float, ...]:
    """The numbers in ``text``, in its order, each once.

    An item between commas is a number or START:END:STEP, both ends included; a STEP such as ``2x`` multiplies.
    ``whole`` allows only whole numbers. Raises ValueError with a sentence.
    """
    numbers: dict[Decimal, None] = {}
    for item in text.split(","):
        numbers |= dict.fromkeys(_expanded(item.strip()))
        if len(numbers) > _MOST:
            raise ValueError(f"{text!r} is more than {_MOST} loads")
    if whole and any(n != n.to_integral_value() for n in numbers):
        raise ValueError(f"{text!r} has numbers that are not whole")
    return tuple(float(n) for n in numbers)


def _expanded(item: str) -> list[Decimal]:
    parts = item.split(":")
    if len(parts) == 1:
        return [_number(item)]
    if len(parts) != 3:
        raise ValueError(f"{item!r} is neither a number nor START:END:STEP")
    start, end = _number(parts[0]), _number(parts[1])
    multiplies = parts[2].endswith("x")
    step = _number(parts[2].removesuffix("x"))
    if end < start or (multiplies and step <= 1):
        raise ValueError(f"{item!r} does not lead from its start to its end")
    found = [start]
    while len(found) <= _MOST and (following := found[-1] * step if multiplies else found[-1] + step) <= end:
        found.append(following)
    return found


def _number(text: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number") from None
    if not number.is_finite() or number <= 0:
        raise ValueError(f"{text!r} is not a positive number")
    return number
