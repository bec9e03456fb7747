"""Durations and sizes as people write them: ``20ms``, ``1.5s``, ``2m``, ``64MiB``."""

import re
from collections.abc import Mapping
from decimal import Decimal

_SECONDS = {
    "us": Decimal("0.000001"),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86_400),
    "w": Decimal(604_800),
}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

DURATION_EXAMPLE = "20ms or 1.5s"
SIZE_EXAMPLE = "64MiB"


def seconds_of(text: str) -> float:
    """Seconds of ``20ms``, ``1.5s``, ``2m``, ``1h``, ``90d`` or ``8w``. Raises ValueError for other text, including a
    number without a unit."""
    return float(_scaled(text, _SECONDS))


def bytes_of(text: str) -> int:
    """Bytes of ``64MiB`` or ``1.5GiB``. Raises ValueError for other text, including a number without a unit."""
    number = _scaled(text, _BYTES)
    if number != int(number):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(number)


def duration(seconds: float) -> str:
    """``seconds`` as :func:`seconds_of` reads it back: ``20ms``, ``1.5s``, ``2m``; ``0`` needs no unit."""
    exact = Decimal(repr(float(seconds)))
    if not exact or not exact.is_finite():
        return _digits(exact)
    unit = next((unit for unit in ("h", "m") if not exact % _SECONDS[unit]), None)
    if unit is None:
        unit = next((unit for unit in ("s", "ms") if abs(exact) >= _SECONDS[unit]), "us")
    return _digits(exact / _SECONDS[unit]) + unit


def size(count: int) -> str:
    """``count`` bytes as :func:`bytes_of` reads it back: ``64MiB``; ``0`` needs no unit."""
    if not count:
        return "0"
    unit = next(unit for unit, factor in reversed(_BYTES.items()) if not count % factor)
    return f"{count // _BYTES[unit]}{unit}"


def _scaled(text: str, units: Mapping[str, Decimal | int]) -> Decimal:
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20}) ?([A-Za-z]+)", text.strip(), re.ASCII)
    if found is None or found[2] not in units:
        raise ValueError(f"{text!r} is not a number with a unit of {', '.join(units)}")
    return Decimal(found[1]) * units[found[2]]


def _digits(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") or "0" if "." in text else text
