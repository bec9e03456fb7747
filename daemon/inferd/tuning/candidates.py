"""The configurations a pool may have on one device, and which of them are neighbours."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import total_ordering
from itertools import product
from math import log
from operator import attrgetter
from typing import Any

from inferd.axes import (
    AXES,
    CHOICES,
    DEVICE_CHOICES,
    QUANTITIES,
    AxisValues,
    ExecutionPath,
    Value,
    compile_key_of,
    placement_of,
)

# One base for each axis: coprime bases spread points evenly.
_BASES = tuple(n for n in range(2, 200) if all(n % d for d in range(2, n)))[: len(AXES)]
# With one stream of one thread, the waiting thread computes the run and failures are lost (OpenVINO fact 38): the
# engine always runs these "async".
_ALONE = (1, 1)

CompileKey = tuple[object, ...]
"""The part of a candidate that can't change without compiling or importing the model again."""

_choices_of = attrgetter(*CHOICES)


@total_ordering
@dataclass(frozen=True, slots=True)
class Candidate(AxisValues):
    """A configuration of one pool on one device; None leaves a setting to the device.

    On the path "sync" each infer request has its own thread that waits for it. One stream of one thread becomes
    "async" even if an old profile says otherwise, because the engine would run it so.
    """

    def __post_init__(self) -> None:
        if (self.streams, self.threads) == _ALONE:
            object.__setattr__(self, "path", "async")

    @property
    def compile_key(self) -> CompileKey:
        """The settings that need a compile or an import to change."""
        return compile_key_of(self)

    @property
    def placement(self) -> tuple[Value, ...]:
        """The settings that determine thread placement."""
        return placement_of(self)

    @property
    def effort(self) -> tuple[int, int, int]:
        """The resources it takes, most important first: of two equally good candidates, the lower one is better."""
        return self.streams * self.threads, self.requests, self.batch

    def describe(self) -> str:
        """A description for people; settings left to the device are omitted."""
        return ", ".join(filter(None, (axis.text(getattr(self, name)) for name, axis in AXES.items())))

    def __lt__(self, other: "Candidate") -> bool:
        return self._key < other._key

    @property
    def _key(self) -> tuple[object, ...]:
        # False and None don't compare, so settings left to the device sort first.
        return (*self.effort, self.streams, *((c is not None, c) for c in _choices_of(self)))


@dataclass(frozen=True, slots=True)
class Space:
    """The values of each axis, ascending for quantities. An axis with one value is fixed; device choices that are not
    given are left to the device.

    Each stream needs a thread and a request. With ``multiples``, requests are one of them times the streams. One stream
    of one thread exists on the path "async" only. Raises ValueError if no candidate is left.
    """

    streams: tuple[int, ...]
    threads: tuple[int, ...]
    requests: tuple[int, ...]
    batch: tuple[int, ...] = (1,)
    choices: Mapping[str, tuple[Value, ...]] = field(default_factory=dict, hash=False)
    path: tuple[ExecutionPath, ...] = ("async",)
    multiples: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if unknown := self.choices.keys() - DEVICE_CHOICES.keys():
            raise ValueError(f"{min(unknown)} is no choice of a device")
        given = {axis: self.choices.get(axis, (None,)) for axis in DEVICE_CHOICES}
        object.__setattr__(self, "choices", given)
        for axis in AXES:
            values = self.values(axis)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{axis} needs different values, not {values}")
        for axis in QUANTITIES:
            values = getattr(self, axis)
            if values[0] < 1 or list(values) != sorted(values):
                raise ValueError(f"{axis} must be positive and ascending, not {values}")
        if not self.size:
            raise ValueError("no candidate has a thread and a request for each of its streams, and a path")

    @property
    def size(self) -> int:
        """The number of candidates."""
        count = sum(
            len(self._paths_for(s, t)) * len(self._requests_for(s)) for s in self.streams for t in self._threads_for(s)
        )
        for values in (self.batch, *self.choices.values()):
            count *= len(values)
        return count

    def contains(self, candidate: Candidate) -> bool:
        """Whether ``candidate`` is a member."""
        c = candidate
        return (
            c.batch in self.batch
            and all(getattr(c, axis) in values for axis, values in self.choices.items())
            and c.streams in self.streams
            and c.threads in self._threads_for(c.streams)
            and c.requests in self._requests_for(c.streams)
            and c.path in self._paths_for(c.streams, c.threads)
        )

    def all(self) -> Iterator[Candidate]:
        """All candidates; those with the same compile key are adjacent."""
        for streams in self.streams:
            for threads, chosen in product(self._threads_for(streams), product(*self.choices.values())):
                choices: dict[str, Any] = dict(zip(self.choices, chosen, strict=True))
                paths = self._paths_for(streams, threads)
                for requests, batch, path in product(self._requests_for(streams), self.batch, paths):
                    yield Candidate(streams, threads, requests, batch, path=path, **choices)

    def clip(self, candidate: Candidate) -> Candidate:
        """A member near ``candidate``: nearest in streams, then in the other axes."""
        for axis in AXES:
            values, value = self.values(axis), getattr(candidate, axis)
            if value not in values:
                near = _nearest(values, value) if axis in QUANTITIES else values[0]
                changes: dict[str, Any] = {axis: near}
                candidate = replace(candidate, **changes)
        for streams in sorted(self.streams, key=lambda s: abs(log(s / candidate.streams))):
            for fitting in self._fitted(replace(candidate, streams=streams)):
                return fitting
        raise AssertionError("a space without members can't be made")

    def neighbours(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """Members one step away on one axis, or on axes that depend on each other; those without a compile first."""
        near = [*self._steps(candidate, "requests", 1), *self._steps(candidate, "batch", 1)]
        # As many rows in flight, in larger or smaller batches.
        for other in self._steps(candidate, "batch", 1):
            requests = candidate.requests * candidate.batch // other.batch
            near += self._fitted(replace(other, requests=max(1, requests)))
        near += self._turns(candidate, "path")
        for other in self._steps(candidate, "streams", 1):
            near.append(other)
            # Keep requests per stream, then threads per stream, then rows in flight.
            requests = max(1, candidate.requests * other.streams // candidate.streams)
            threads = max(1, candidate.threads * other.streams // candidate.streams)
            batch = _nearest(self.batch, candidate.batch * candidate.streams / other.streams)
            near += self._fitted(replace(candidate, streams=other.streams, requests=requests))
            near += self._fitted(replace(other, requests=requests, threads=threads))
            near += self._fitted(replace(other, requests=requests, batch=batch))
        near += self._steps(candidate, "threads", 1)
        for axis in DEVICE_CHOICES:
            near += self._turns(candidate, axis)
        return tuple(c for c in dict.fromkeys(near) if c != candidate)

    def jumps(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """Members far away on one quantity: two steps, and at least a factor of two."""
        far = [c for axis in ("requests", "batch", "streams", "threads") for c in self._steps(candidate, axis, 2)]
        return tuple(c for c in dict.fromkeys(far) if c != candidate)

    def scouts(self, like: Candidate) -> tuple[Candidate, ...]:
        """A few members far apart in streams and batch, which matter most; other axes as in ``like``."""
        found = []
        for streams, batch in product(_middle_and_ends(self.streams), _middle_and_ends(self.batch)):
            requests = max(1, like.requests * streams // like.streams)
            found.append(self.clip(replace(like, streams=streams, requests=requests, batch=batch)))
        return tuple(dict.fromkeys(found))

    def spread(self, count: int) -> Iterator[Candidate]:
        """Up to ``count`` members spread over the space (a Halton sequence); some may repeat."""
        for index in range(1, count + 1):
            chosen = {}
            for axis, base in zip(AXES, _BASES, strict=True):
                values = self.values(axis)
                chosen[axis] = values[int(_reversed_digits(index, base) * len(values))]
            yield self.clip(Candidate(**chosen))

    def place(self, candidate: Candidate) -> tuple[float, ...]:
        """The candidate's coordinates, 0 to 1 on each axis."""
        found = []
        for axis in AXES:
            values, value = self.values(axis), getattr(candidate, axis)
            index = bisect_left(values, value) if axis in QUANTITIES else values.index(value) if value in values else 0
            found.append(index / max(1, len(values) - 1))
        return tuple(found)

    def values(self, axis: str) -> tuple[Any, ...]:
        """The values of ``axis``."""
        values: tuple[Any, ...] = self.choices[axis] if axis in self.choices else getattr(self, axis)
        return values

    def _threads_for(self, streams: int) -> tuple[int, ...]:
        enough = self.threads[bisect_left(self.threads, streams) :]
        return tuple(t for t in enough if self._paths_for(streams, t))

    def _requests_for(self, streams: int) -> tuple[int, ...]:
        enough = self.requests[bisect_left(self.requests, streams) :]
        if not self.multiples:
            return enough
        allowed = {k * streams for k in self.multiples}
        return tuple(r for r in enough if r in allowed)

    def _paths_for(self, streams: int, threads: int) -> tuple[ExecutionPath, ...]:
        return tuple(p for p in self.path if p == "async" or (streams, threads) != _ALONE)

    def _fitted(self, candidate: Candidate) -> Iterator[Candidate]:
        """``candidate`` with the nearest threads and requests that its streams allow; nothing if there are none."""
        threads, requests = self._threads_for(candidate.streams), self._requests_for(candidate.streams)
        if threads and requests:
            near = _nearest(threads, candidate.threads)
            paths = self._paths_for(candidate.streams, near)
            path = candidate.path if candidate.path in paths else paths[0]
            yield replace(candidate, threads=near, requests=_nearest(requests, candidate.requests), path=path)

    def _steps(self, candidate: Candidate, axis: str, steps: int) -> Iterator[Candidate]:
        """The values ``steps`` above and below on ``axis``, if they exist; several steps at least double or halve."""
        value = getattr(candidate, axis)
        of_streams = {"threads": self._threads_for, "requests": self._requests_for}
        values = of_streams[axis](candidate.streams) if axis in of_streams else self.values(axis)
        if axis == "streams":
            # Without stream counts for which there are too few threads or requests.
            values = tuple(s for s in values if self._threads_for(s) and self._requests_for(s))
        up, down = bisect_right(values, value) - 1 + steps, bisect_left(values, value) - steps
        if steps > 1:
            up = max(up, bisect_left(values, 2 * value))
            down = min(down, bisect_right(values, value / 2) - 1)
        for index in (up, down):
            if 0 <= index < len(values):
                changes: dict[str, Any] = {axis: values[index]}
                yield from self._fitted(replace(candidate, **changes))

    def _turns(self, candidate: Candidate, axis: str) -> Iterator[Candidate]:
        """Every other value of a choice."""
        for value in self.values(axis):
            if value != getattr(candidate, axis):
                yield replace(candidate, **{axis: value})


def _nearest(values: Iterable[int], wanted: float) -> int:
    """The nearest by ratio; the lower of two that are equally near."""
    return min(values, key=lambda v: (abs(log(v / wanted)), v))


def _middle_and_ends(values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys((values[len(values) // 2], values[0], values[-1])))


def _reversed_digits(number: int, base: int) -> float:
    """The digits of ``number`` mirrored at the radix point: in [0, 1), evenly spread for consecutive numbers."""
    result, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        result += digit * scale
    return result
