"""Records of several workers as one, each field as it declares."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from inferd.merging import (
    COUNTS,
    MAX,
    MAX_COUNTS,
    NONEMPTY,
    RECORD,
    RECORDS_BY_DEVICE,
    SUM,
    TOTAL,
    TOTAL_COUNTS,
    merged,
    rule_at,
    with_retired,
)


@dataclass(frozen=True)
class Inner:
    """One on a device."""

    device: str
    streams: int | None = field(default=None, metadata=SUM)


@dataclass(frozen=True)
class Outer:
    """One of each rule."""

    name: str = "first"
    waiting: int = field(default=0, metadata=SUM)
    oldest: float | None = field(default=None, metadata=MAX)
    done: int = field(default=0, metadata=TOTAL)
    outcomes: Mapping[str, int] = field(default_factory=dict, metadata=TOTAL_COUNTS)
    loads: Mapping[str, int] = field(default_factory=dict, metadata=COUNTS)
    reloads: Mapping[str, int] = field(default_factory=dict, metadata=MAX_COUNTS)
    text: str = field(default="", metadata=NONEMPTY)
    inner: Inner | None = field(default=None, metadata=RECORD)
    devices: tuple[Inner, ...] = field(default=(), metadata=RECORDS_BY_DEVICE)


ONE = Outer("a", 1, 0.5, 3, {"ok": 1}, {"ok": 1}, {"ok": 2}, "", None, (Inner("CPU", 1), Inner("GPU", 2)))
OTHER = Outer("b", 2, None, 4, {"bad": 2}, {"ok": 5}, {"ok": 1}, "x", Inner("CPU", 7), (Inner("CPU", 3),))


def test_each_field_is_merged_as_it_declares() -> None:
    assert merged([ONE, OTHER]) == Outer(
        "a",
        3,
        0.5,
        7,
        {"ok": 1, "bad": 2},
        {"ok": 6},
        {"ok": 2},
        "x",
        Inner("CPU", 7),
        (Inner("CPU", 4), Inner("GPU", 2)),
    )


def test_one_record_is_what_it_was_and_none_is_no_value() -> None:
    assert merged([ONE]) == ONE
    assert merged([Inner("CPU"), Inner("CPU")]) == Inner("CPU")


def test_of_what_has_ended_only_counters_stay() -> None:
    assert with_retired(ONE, [OTHER]) == Outer(
        "a", 1, 0.5, 7, {"ok": 1, "bad": 2}, {"ok": 1}, {"ok": 2}, "", None, ONE.devices
    )


def test_a_rule_is_found_by_the_path_to_its_field() -> None:
    assert (rule_at(Outer, "oldest"), rule_at(Outer, "inner.streams")) == ("max", "sum")
    for path in ("name", "none", "inner.device", "none.streams"):
        with pytest.raises(KeyError):
            rule_at(Outer, path)
