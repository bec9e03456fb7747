"""Merges several expositions into one: OpenMetrics text as inferd writes it, by the rule declared with each series.

Lines are compared by their head, all up to the number: workers write the labels of a series in one order, so a line
that is only added needs no parsing. A series that a worker lacks counts as 0.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Rule = Literal["sum", "max", "min", "worker", "own"]
"""How to merge one series of several workers: ``worker`` keeps each value, with a label that names the worker, and
``own`` drops them, because the supervisor adds its own."""

# A label's value has its quotes and backslashes escaped.
_LABELS = r'\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\.)*",?)*\}'
_LINE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*(?:{_LABELS})?) (\S+)(?: \S+)?(?: # (\{{.*))?")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)",?')


@dataclass(slots=True)
class Family:
    """One metric family. ``values`` has, by head such as ``name_total{model="a"}``, the number and the exemplar's
    text, "" for none."""

    name: str
    kind: str = "unknown"
    help: str = ""
    unit: str = ""
    values: dict[str, tuple[float, str]] = field(default_factory=dict)


Families = dict[str, Family]

# What every model version has that is to be served, and what all have that are counted, also when they are gone.
_NAMING = frozenset({"inferd_model_ready", "inferd_received_bytes"})


def parse(text: str) -> Families:
    """The families of one worker's ``text``, by name. Raises ValueError for a line that is none."""
    families: Families = {}
    for line in text.split("\n"):
        if line == "# EOF":
            break
        if line.startswith("# "):
            _, what, name, *rest = line.split(" ", 3)
            family = families.setdefault(name, Family(name))
            value = rest[0] if rest else ""
            if what == "HELP":
                family.help = unescaped(value)
            elif what == "TYPE":
                family.kind = value
            else:
                family.unit = value
        elif (found := _LINE.fullmatch(line)) is not None:
            family.values[found[1]] = float(found[2]), found[3] or ""
        elif line:
            raise ValueError(f"no line of an exposition: {line[:80]}")
    return families


def labels_of(head: str) -> dict[str, str]:
    """The labels in ``head``, by name."""
    return {name: unescaped(value) for name, value in _LABEL.findall(head.partition("{")[2])}


def merge(parts: Mapping[str, Families], retired: Families | None, rule: Callable[[str], Rule]) -> Iterator[Family]:
    """The families of all ``parts`` (by worker) and of the workers that are gone, each family once.

    ``rule`` gives a family's rule by name; histograms are always summed and facts always deduplicated.
    """
    retired_families = retired or {}
    for name in dict.fromkeys(name for part in (*parts.values(), retired_families) for name in part):
        whose = {key: part[name] for key, part in parts.items() if name in part}
        ended = [retired_families[name]] if name in retired_families else []
        one = next(iter((*whose.values(), *ended)))
        family = Family(name, one.kind, one.help, one.unit)
        how: Rule = {"histogram": "sum", "info": "max"}.get(one.kind) or rule(name)  # type: ignore[assignment]
        if how == "own":
            continue
        if how == "worker":
            for key, part in whose.items():
                family.values |= {_with(head, "worker", key): value for head, value in part.values.items()}
        elif one.kind == "histogram":
            family.values = _histograms([f.values for f in whose.values()], [f.values for f in ended])
        else:
            family.values = _added([f.values for f in (*whose.values(), *ended)], _HOW[how])
        yield family


def add_retired(before: Families | None, last: Families, rule: Callable[[str], Rule]) -> Families:
    """Adds the counters of a worker that is gone to those of the workers gone ``before`` it; gauges are dropped."""
    lasting = {name: family for name, family in last.items() if _lasts(family, rule)}
    if before is None:
        return lasting
    return {family.name: family for family in merge({"before": before, "last": lasting}, None, rule)}


def vanished_series(before: Families, now: Families, rule: Callable[[str], Rule]) -> Families:
    """The series that only rise of which a worker spoke ``before`` and does not ``now``, as it value them last.

    Workers drop those of a model version that is gone each at its own time, and their sum must not fall.
    """
    found = {}
    for name, family in before.items():
        if not _lasts(family, rule):
            continue
        heads = family.values.keys() - (now[name].values.keys() if name in now else ())
        if heads and family.kind == "histogram":
            # A bound that went because the objective has changed is no series.
            series = {_series(head) for head in heads if head.startswith(f"{name}_count")}
            heads = {head for head in family.values if _series(head) in series} if series else set()
        if heads:
            kept = {head: value for head, value in family.values.items() if head in heads}
            found[name] = Family(name, family.kind, family.help, family.unit, kept)
    return found


def keep_named(retired: Families, parts: Iterable[Families]) -> Families:
    """The ``retired`` counters of models that at least one of ``parts`` names.

    Forget the rest for good: shown again, it would look like a counter reset. Labels such as ``_OTHER`` name no model.
    Nothing is forgotten while a worker starts or drains, because it may not name all models.
    """
    parts = list(parts)
    if not parts or not all(_whole(part) for part in parts):
        return retired
    named = {_naming(head) for part in parts for name in _NAMING & part.keys() for head in part[name].values}
    models = {model for model, _ in named}

    def is_named(head: str) -> bool:
        model, version = _naming(head)
        if not model or model.startswith("_"):
            return True
        return model in models if version is None else (model, version) in named

    return {
        name: Family(name, one.kind, one.help, one.unit, {h: v for h, v in one.values.items() if is_named(h)})
        for name, one in retired.items()
    }


def unescaped(text: str) -> str:
    r"""``text`` without the backslashes of the format: ``\\``, ``\n`` and ``\"``."""
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text) if "\\" in text else text


Values = Mapping[str, tuple[float, str]]

_HOW: Mapping[Rule, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "max": max, "min": min}


def _added(parts: Iterable[Values], add: Callable[[float, float], float]) -> dict[str, tuple[float, str]]:
    total: dict[str, tuple[float, str]] = {}
    for part in parts:
        for head, (value, exemplar) in part.items():
            if (known := total.get(head)) is None:
                total[head] = value, exemplar
            else:
                total[head] = add(known[0], value), _newer(known[1], exemplar)
    return total


def _histograms(parts: Sequence[Values], ended: Sequence[Values]) -> dict[str, tuple[float, str]]:
    """Buckets that all have are added. A bound that only some have, as where an objective has just changed, counts in
    the others what is sure to lie below it: the values at or below their next lower bound."""
    if all(part.keys() == parts[0].keys() for part in (*parts[1:], *ended)) and parts:
        return _added((*parts, *ended), _HOW["sum"])
    each = [_by_series(values) for values in (*parts, *ended)]
    result: dict[str, tuple[float, str]] = {}
    for series in dict.fromkeys(series for one in each for series in one):
        having = [one[series] for one in each if series in one]
        # Bounds that only those have had who are gone are not shown any more.
        showing = [one[series] for one in each[: len(parts)] if series in one] or having
        bounds = sorted({bound for one in showing for bound in one.buckets})
        for bound in bounds:
            head = next(one.buckets[bound][0] for one in showing if bound in one.buckets)
            exemplars = (one.buckets[bound][2] for one in having if bound in one.buckets)
            exemplar = ""
            for other in exemplars:
                exemplar = _newer(exemplar, other)
            result[head] = sum(one.below(bound) for one in having), exemplar
        result |= _added([one.rest for one in having], _HOW["sum"])
    return result


@dataclass(slots=True)
class _BucketCounts:
    """``buckets`` has head, cumulative count and exemplar by bound, rising; ``rest`` its count and its sum."""

    buckets: dict[float, tuple[str, float, str]] = field(default_factory=dict)
    rest: dict[str, tuple[float, str]] = field(default_factory=dict)

    def below(self, limit: float) -> float:
        return max((count for bound, (_, count, _) in self.buckets.items() if bound <= limit), default=0.0)


def _by_series(values: Values) -> dict[tuple[tuple[str, str], ...], _BucketCounts]:
    """By labels without ``le``."""
    found: dict[tuple[tuple[str, str], ...], _BucketCounts] = {}
    for head, (value, exemplar) in values.items():
        labels = labels_of(head)
        bound = labels.pop("le", None)
        one = found.setdefault(tuple(sorted(labels.items())), _BucketCounts())
        if bound is None:
            one.rest[head] = value, exemplar
        else:
            one.buckets[float(bound)] = head, value, exemplar
    return found


def _newer(one: str, other: str) -> str:
    """The exemplar that came later; its text ends with when it came."""
    if not (one and other):
        return one or other
    return max(one, other, key=lambda text: float(text.rpartition(" ")[2]))


def _with(head: str, label: str, value: str) -> str:
    name, _, labels = head.partition("{")
    inner = labels.removesuffix("}")
    return f'{name}{{{inner}{"," if inner else ""}{label}="{value}"}}'


def _whole(part: Families) -> bool:
    """Whether a worker that says ``part`` takes requests, and so names all that it serves."""
    return all(value for name in ("inferd_ready",) if name in part for value, _ in part[name].values.values())


def _lasts(family: Family, rule: Callable[[str], Rule]) -> bool:
    return family.kind not in ("gauge", "info") and rule(family.name) not in ("worker", "own")


def _series(head: str) -> tuple[tuple[str, str], ...]:
    """The labels of a histogram's sample without ``le``."""
    return tuple(sorted((name, value) for name, value in labels_of(head).items() if name != "le"))


def _naming(head: str) -> tuple[str, str | None]:
    """The model and version that ``head`` is about; "" where it is about none, None where it is about all versions."""
    if 'model="' not in head:
        return "", None
    labels = labels_of(head)
    return labels.get("model", ""), labels.get("version")
