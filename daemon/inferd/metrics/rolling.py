"""Rates and percentiles of the last seconds, from snapshots taken once a second.

Counters are turned into their increases between snapshots. As with Prometheus' rate(), a counter that was reset
counts from zero, and a new model counts from its second snapshot on. Memory is bounded: the increases of the window,
and two numbers per snapshot and model for the history.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from inferd.metrics import error_budget
from inferd.metrics.process_usage import ProcessUsage
from inferd.metrics.snapshot import (
    DeviceSnapshot,
    RequestCounts,
    ServerSnapshot,
    VersionKey,
    VersionSnapshot,
)
from inferd.scheduling.queue_state import QueueState

WINDOW = 10.0
"""The window of rates and percentiles, in seconds."""

READINGS = 300
"""The number of snapshots in the history."""

# Outcomes other than these and "ok" are server errors, as OpenTelemetry classifies gRPC statuses.
SHED = frozenset({"overloaded"})
CLIENTS_OWN = frozenset({"invalid", "not_found", "cancelled", "unauthenticated", "denied", "unsupported"})


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Part of a DeviceSnapshot. ``threads`` is for all ``streams`` together, 0 if unknown."""

    device: str
    streams: int
    threads: int
    infer_requests: int
    precision: str


@dataclass(frozen=True, slots=True)
class HistoryView:
    """One point per snapshot, the newest last: answers per second, and their 99th percentile if there were any."""

    answered: list[float]
    p99: list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView(QueueState):
    """One model version and the state of its queue; rates are per second, times in seconds.

    ``answered`` counts successful requests; ``shed``, ``errors`` and ``refused`` (client errors and cancellations) are
    the others, and ``outcomes`` has all of them by outcome. ``load`` is the average number of requests in the server,
    counting successful ones only. ``tail`` is the latency at the objective's ``percentile``; a percentile at the
    ``ceiling`` is that or more. ``within`` is the fraction of answers that met the objective.

    ``availability`` is the fraction of requests to be answered, None if the version takes none. The burn rates say
    how fast the window's requests spend the error budgets: 1 is as fast as allowed, None without requests to judge or
    without an objective. ``tuner`` is the tuner's phase, ``tuning`` a line about it.
    """

    model: str
    version: str
    state: str
    reason: str
    answered: float
    inferences: float
    shed: float
    errors: float
    refused: float
    outcomes: dict[str, float]
    load: float
    p50: float | None
    p99: float | None
    tail: float | None
    percentile: float
    ceiling: float
    objective: float | None
    within: float | None
    infer_requests: int
    devices: list[DeviceView]
    tuning: str
    tuner: str
    availability: float | None
    latency_burn: float | None
    availability_burn: float | None
    history: HistoryView


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView(ProcessUsage):
    """The server and the resource usage of its processes; ``service`` identifies inferd.

    ``sequence`` numbers the snapshots of one process, which ``started`` identifies. ``window`` is the length of the
    rates' window in seconds, 0 after the first snapshot. ``cpu`` is in CPUs. ``other`` has the requests for unknown
    models, by outcome.
    """

    service: str
    sequence: int
    started: float
    window: float
    phase: str
    version: str
    openvino: str
    uptime: float
    cpu: float
    answered: float
    shed: float
    errors: float
    refused: float
    other: dict[str, float]
    models: list[ModelView]


def quantile(q: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """The ``q`` quantile like Prometheus' histogram_quantile: linear inside the bucket that holds it.

    ``counts`` has one number per bucket, not cumulative, and a last one for values above all ``bounds``. Returns the
    last bound if the quantile exceeds it, None if there are no values.
    """
    total = sum(counts)
    if not total or not bounds:
        return None
    rank, below, lower = q * total, 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * max(0.0, rank - below) / count
        below, lower = below + count, bound
    return bounds[-1]


def part_within(limit: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """The fraction of ``counts`` at or below ``limit``: exact if that is a bound, else linear inside its bucket."""
    total = sum(counts)
    if not total:
        return None
    below, lower = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if bound > limit:
            below += count * max(0.0, limit - lower) / (bound - lower)
            break
        below, lower = below + count, bound
    return below / total


@dataclass(frozen=True, slots=True)
class _Rise:
    """The increases of one model's counters between two snapshots that are ``seconds`` apart."""

    seconds: float
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    spent: float
    outcomes: Mapping[str, int]
    rows: int
    over_quota: int

    @classmethod
    def between(cls, seconds: float, old: RequestCounts, new: RequestCounts) -> "_Rise":
        counts, spent = new.counts, new.seconds
        if old.bounds == new.bounds and all(b >= a for a, b in zip(old.counts, new.counts, strict=True)):
            counts = tuple(b - a for a, b in zip(old.counts, new.counts, strict=True))
            spent = max(0.0, new.seconds - old.seconds)
        rows = new.rows - old.rows if new.rows >= old.rows else new.rows
        over_quota = new.over_quota - old.over_quota if new.over_quota >= old.over_quota else new.over_quota
        return cls(seconds, new.bounds, counts, spent, _risen(old.outcomes, new.outcomes), rows, over_quota)


@dataclass(slots=True)
class _Track:
    """The data kept for one model version."""

    last: VersionSnapshot
    points: int
    rises: deque[_Rise] = field(default_factory=deque)
    answered: deque[float] = field(init=False)
    p99: deque[float | None] = field(init=False)

    def __post_init__(self) -> None:
        self.answered, self.p99 = deque(maxlen=self.points), deque(maxlen=self.points)

    def add(self, seconds: float, window: float, now: VersionSnapshot) -> None:
        rise = _Rise.between(seconds, self.last.requests, now.requests)
        self.last = now
        self.rises.append(rise)
        _trim(self.rises, window)
        self.answered.append(_short(rise.outcomes.get("ok", 0) / seconds))
        self.p99.append(_short_or_none(quantile(0.99, rise.bounds, rise.counts)))


@dataclass(frozen=True, slots=True)
class _ServerRise:
    seconds: float
    cpu: float
    other: Mapping[str, int]


_R = TypeVar("_R", _Rise, _ServerRise)
_T = TypeVar("_T", float, float | None)


class History:
    """Takes snapshots and summarises the last ``window`` seconds. For one thread at a time."""

    def __init__(self, window: float = WINDOW, readings: int = READINGS) -> None:
        self._window, self._readings = window, readings
        self._sequence = 0
        self._last: ServerSnapshot | None = None
        self._rises: deque[_ServerRise] = deque()
        self._tracks: dict[VersionKey, _Track] = {}

    def add(self, now: ServerSnapshot) -> None:
        """Take a snapshot; one that is not later than the last is ignored."""
        last = self._last
        if last is not None and now.at <= last.at:
            return
        self._last = now
        self._sequence += 1
        tracks = {}
        for version in now.versions:
            if not version.desired:
                continue
            track = self._tracks.get(version.key)
            if track is None or last is None:
                track = _Track(version, self._readings)
            else:
                track.add(now.at - last.at, self._window, version)
            tracks[version.key] = track
        self._tracks = tracks
        if last is not None:
            cpu = now.process.cpu_seconds - last.process.cpu_seconds
            self._rises.append(_ServerRise(now.at - last.at, max(0.0, cpu), _risen(last.other, now.other)))
            _trim(self._rises, self._window)

    def view(self, since: int = 0, pause: Callable[[], None] = lambda: None) -> ServerView | None:
        """The state at the last snapshot, None before the first.

        Histories hold the snapshots after number ``since``, or all of them if that belongs to another process.
        ``pause`` is called after each model, as there may be many.
        """
        now = self._last
        if now is None:
            return None
        points = self._sequence - since if 0 <= since <= self._sequence else self._readings
        models = []
        for track in self._tracks.values():
            models.append(_model(track, points))
            pause()
        seconds = sum(rise.seconds for rise in self._rises)
        other = _rates(seconds, (rise.other for rise in self._rises))
        return ServerView(
            **asdict(now.process),
            service="inferd",
            sequence=self._sequence,
            started=now.started,
            window=_short(seconds),
            phase=now.phase,
            version=now.version,
            openvino=now.openvino,
            uptime=round(now.at - now.started, 1),
            cpu=_short(sum(rise.cpu for rise in self._rises) / seconds) if seconds else 0.0,
            answered=_short(sum(m.answered for m in models)),
            shed=_short(sum(m.shed for m in models) + _of(other, SHED)),
            errors=_short(sum(m.errors for m in models) + _errors(other)),
            refused=_short(sum(m.refused for m in models) + _of(other, CLIENTS_OWN)),
            other=other,
            models=models,
        )


def _model(track: _Track, points: int) -> ModelView:
    now, requests = track.last, track.last.requests
    counts = [0] * len(requests.counts)
    for rise in track.rises:
        # Buckets of another objective can't be added to the present ones.
        if rise.bounds == requests.bounds:
            counts = [a + b for a, b in zip(counts, rise.counts, strict=True)]
    seconds = sum(rise.seconds for rise in track.rises)
    outcomes = _rates(seconds, (rise.outcomes for rise in track.rises))
    objective = now.objective.latency if now.objective is not None else None
    percentile = now.objective.percentile if now.objective is not None else 0.0
    within = part_within(objective, requests.bounds, counts) if objective is not None else None
    availability = now.objective.availability_ratio if now.objective is not None else None
    return ModelView(
        **{name: _rounded(value) for name, value in asdict(now.queue or QueueState()).items()},
        model=now.model,
        version=now.version,
        state=now.state,
        reason=now.reason,
        answered=outcomes.get("ok", 0.0),
        inferences=_short(sum(rise.rows for rise in track.rises) / seconds) if seconds else 0.0,
        shed=_of(outcomes, SHED),
        errors=_errors(outcomes),
        refused=_of(outcomes, CLIENTS_OWN),
        outcomes=outcomes,
        load=_short(sum(rise.spent for rise in track.rises) / seconds) if seconds else 0.0,
        p50=_short_or_none(quantile(0.5, requests.bounds, counts)),
        p99=_short_or_none(quantile(0.99, requests.bounds, counts)),
        tail=_short_or_none(quantile(percentile / 100, requests.bounds, counts)),
        percentile=percentile,
        ceiling=requests.bounds[-1] if requests.bounds else 0.0,
        objective=objective,
        within=within if within is None else round(within, 6),
        infer_requests=sum(device.infer_requests for device in now.devices),
        devices=[_device(device) for device in now.devices],
        tuning=now.tuning.text if now.tuning is not None else "",
        tuner=now.tuning.phase if now.tuning is not None else "",
        availability=availability,
        latency_burn=_latency_burn(within, percentile),
        availability_burn=_availability_burn(track.rises, availability),
        history=HistoryView(_newest(track.answered, points), _newest(track.p99, points)),
    )


def _latency_burn(within: float | None, percentile: float) -> float | None:
    return None if within is None else _short_or_none(error_budget.burn_rate(1 - within, 1, percentile / 100))


def _availability_burn(rises: Iterable[_Rise], objective: float | None) -> float | None:
    if objective is None:
        return None
    outcomes: Counter[str] = Counter()
    over_quota = 0
    for rise in rises:
        outcomes.update(rise.outcomes)
        over_quota += rise.over_quota
    return _short_or_none(error_budget.burn_rate(*error_budget.unanswered(outcomes, over_quota), objective))


def _device(device: DeviceSnapshot) -> DeviceView:
    return DeviceView(device.device, device.streams, device.threads, device.infer_requests, device.precision)


def _risen(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    """The increase of each counter; if any has fallen, all of them were reset."""
    if any(new.get(key, 0) < count for key, count in old.items()):
        old = {}
    return {key: rise for key, count in new.items() if (rise := count - old.get(key, 0))}


def _rates(seconds: float, rises: Iterable[Mapping[str, int]]) -> dict[str, float]:
    total: dict[str, int] = {}
    for rise in rises:
        for key, count in rise.items():
            total[key] = total.get(key, 0) + count
    return {key: _short(count / seconds) for key, count in sorted(total.items())}


def _of(outcomes: Mapping[str, float], which: frozenset[str]) -> float:
    return _short(sum(rate for outcome, rate in outcomes.items() if outcome in which))


def _errors(outcomes: Mapping[str, float]) -> float:
    return _of(outcomes, frozenset(outcomes) - SHED - CLIENTS_OWN - {"ok"})


def _trim(rises: deque[_R], window: float) -> None:
    """Drop the oldest while the others cover ``window`` seconds."""
    covered = sum(rise.seconds for rise in rises)
    while covered - rises[0].seconds >= window:
        covered -= rises.popleft().seconds


def _newest(history: deque[_T], points: int) -> list[_T]:
    return list(history)[max(0, len(history) - points) :]


def _short(value: float) -> float:
    """Round to five digits, enough for any display."""
    return float(f"{value:.5g}")


def _rounded(value: Any) -> Any:
    """An integer unchanged, any other number rounded to five digits."""
    return value if isinstance(value, int) else _short(value)


def _short_or_none(value: float | None) -> float | None:
    return None if value is None else _short(value)
