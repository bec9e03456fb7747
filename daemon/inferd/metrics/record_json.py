"""Records as JSON for another process, and back: what the dataclass declares is all that is needed."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_PLAIN = (str, int, float, bool, NoneType)


def encode(record: object) -> str:
    """``record`` as one line. A mapping by tuples becomes a list of pairs."""
    return json.dumps(plain(record), separators=(",", ":"))


def plain(value: Any) -> Any:
    """``value`` made of what JSON knows."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if all(isinstance(key, str) for key in value):
        return {key: plain(one) for key, one in value.items()}
    return [[list(key), plain(one)] for key, one in value.items()]


def decode(kind: type[Record], value: Any) -> Record:
    """The record that :func:`plain` made ``value`` of; more than it has is passed over. Raises KeyError, TypeError,
    ValueError or AttributeError where ``value`` is none of its kind."""
    decoded: Record = _decoded(kind, value)
    return decoded


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _decoded(hint: Any, value: Any) -> Any:
    if value is None or hint in _PLAIN:
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return hint(**{name: _decoded(of, value[name]) for name, of in _hints(hint).items()})
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (list, tuple):
        return origin(_decoded(arguments[0], one) for one in value)
    if origin in (dict, Mapping):
        pairs = value.items() if isinstance(value, dict) else ((tuple(key), one) for key, one in value)
        return {key: _decoded(arguments[1], one) for key, one in pairs}
    # It may be None, and is not.
    (known,) = [one for one in arguments if one is not NoneType]
    return _decoded(known, value)
