"""Merges several records of one kind into one, each field by its declared rule: how workers' records are added up.

A dataclass declares with each field how it is merged: ``waiting: int = field(metadata=SUM)``. A field that declares
nothing keeps the value of the first record. None counts as no value.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from types import MappingProxyType
from typing import Any, TypeVar, cast, get_args, get_type_hints

Record = TypeVar("Record")
Metadata = Mapping[str, str]


def _declared(merged: str, retired: str = "") -> Metadata:
    return MappingProxyType({"merged": merged, "retired": retired})


# ``TOTAL`` and its like are counters: they include what workers that have ended had counted.
SUM = _declared("sum")
MAX = _declared("max")
NONEMPTY = _declared("nonempty")
COUNTS = _declared("counts")
MAX_COUNTS = _declared("max counts")
RECORD = _declared("record")
RECORDS_BY_DEVICE = _declared("records by device")
TOTAL = _declared("sum", retired="sum")
TOTAL_COUNTS = _declared("counts", retired="counts")
TOTAL_RECORD = _declared("record", retired="record")


def merged(records: Sequence[Record]) -> Record:
    """All ``records`` as one; there is at least one."""
    return _combined(records, "merged")


def with_retired(record: Record, retired: Iterable[Record]) -> Record:
    """``record`` with the counters of ``retired`` added; its other fields stay."""
    return _combined([record, *retired], "retired")


def rule_at(kind: type, path: str) -> str:
    """How the field at ``path`` of ``kind``, such as ``queue.waiting``, is merged.

    Raises KeyError where there is none, or it declares nothing.
    """
    name, _, rest = path.partition(".")
    if rest:
        return rule_at(record_type(get_type_hints(kind)[name]), rest)
    rules: dict[str, str] = {one.name: one.metadata["merged"] for one in fields(kind) if one.metadata}
    return rules[name]


def record_type(hint: Any) -> type:
    """The dataclass that ``hint`` is, or has among its arguments."""
    (found,) = [one for one in (hint, *get_args(hint)) if isinstance(one, type) and is_dataclass(one)]
    return found


def _combined(records: Sequence[Record], what: str) -> Record:
    first: Any = records[0]
    if len(records) == 1:
        return records[0]
    if (own := getattr(first, "combined", None)) is not None:
        return cast("Record", own(records[1:]))
    changes = {}
    for one in fields(first):
        if rule := one.metadata.get(what):
            values = [value for record in records if (value := getattr(record, one.name)) is not None]
            changes[one.name] = _RULES[rule](values, what) if values else None
    return cast("Record", replace(first, **changes))


def _counts(values: Sequence[Mapping[Any, int]], _: str) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for one in values:
        total.update(one)
    return dict(total)


def _max_counts(values: Sequence[Mapping[Any, int]], _: str) -> dict[Any, int]:
    return {key: max(one.get(key, 0) for one in values) for key in dict.fromkeys(key for one in values for key in one)}


def _by_device(values: Sequence[Sequence[Any]], what: str) -> tuple[Any, ...]:
    found: dict[str, list[Any]] = {}
    for record in (record for records in values for record in records):
        found.setdefault(record.device, []).append(record)
    return tuple(_combined(records, what) for records in found.values())


_RULES: Mapping[str, Callable[[Any, str], Any]] = {
    "sum": lambda values, _: reduce(operator.add, values),
    "max": lambda values, _: max(values),
    "nonempty": lambda values, _: next(filter(None, values), values[0]),
    "counts": _counts,
    "max counts": _max_counts,
    "record": _combined,
    "records by device": _by_device,
}
