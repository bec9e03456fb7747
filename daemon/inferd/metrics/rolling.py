"""Rates and percentiles of the last seconds, from snapshots taken once a second.

Counters become what they rose by from one reading to the next, so that, as with Prometheus' rate(), one that
began again counts from zero, and a model that came counts from its second reading on. What is kept is bounded:
the rises of the window, and two numbers a reading and model for the history.
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
"""Seconds that rates and percentiles are of."""

READINGS = 300
"""How many the history goes back."""

# Outcomes other than these and "ok" are errors, the server's own: as OpenTelemetry counts them for gRPC.
SHED = frozenset({"overloaded"})
CLIENTS_OWN = frozenset({"invalid", "not_found", "cancelled", "unauthenticated", "denied", "unsupported"})


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Part of a DeviceSnapshot. All ``streams`` together have so many ``threads``, 0 where that is unknown."""

    device: str
    streams: int
    threads: int
    infer_requests: int
    precision: str


@dataclass(frozen=True, slots=True)
class HistoryView:
    """A point a reading, the newest last: answers a second, and their 99th percentile where there were any."""

    answered: list[float]
    p99: list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView(QueueState):
    """One model version and the state of its queue; rates are a second, times seconds.

    ``answered`` counts requests answered well; ``shed``, ``errors`` and ``refused`` (the client's own mistakes
    and cancellations) are the others, and ``outcomes`` the same by outcome. ``load`` is how many requests that
    were answered well were in the server on average. ``tail`` is the ``percentile`` that the objective means; a
    percentile at the ``ceiling`` is that or more. ``within`` is the part of the answers that kept the objective.

    ``availability`` is the part of the requests to be answered, None where the version takes none. The burn rates say
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
    """The server and what its processes use; ``service`` says that it is inferd that answers.

    ``sequence`` numbers the readings of one process, which ``started`` tells from another. ``window`` is how
    many seconds the rates are of, 0 after the first reading. ``cpu`` is in CPUs. ``other`` has, by outcome, the
    requests that named no model of ours.
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
    """The ``q`` quantile as histogram_quantile of Prometheus has it: linear inside the bucket that holds it.

    ``counts`` has one number a bucket, not cumulative, and a last one for what exceeds all ``bounds``. Gives the
    last bound where the quantile exceeds that, None where there is nothing.
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
    """The part of ``counts`` at or below ``limit``: exact where that is a bound, else linear inside its bucket."""
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
    """By how much one model's counters rose between two readings that are ``seconds`` apart."""

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
    """What is kept of one model version."""

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
    """Takes readings, tells what the last ``window`` seconds were like. For one thread at a time."""

    def __init__(self, window: float = WINDOW, readings: int = READINGS) -> None:
        self._window, self._readings = window, readings
        self._sequence = 0
        self._last: ServerSnapshot | None = None
        self._rises: deque[_ServerRise] = deque()
        self._tracks: dict[VersionKey, _Track] = {}

    def add(self, now: ServerSnapshot) -> None:
        """Take a reading; one that is not later than the last is passed over."""
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
        """The state at the last reading, None before the first.

        Histories hold the readings after number ``since``, or all where that is of another process. ``pause`` is
        called after each model, as there may be many.
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
        # Buckets of another objective can't be added to those of today's.
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
    """By how much each counter rose; all of them began again where one fell."""
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
    """Forget the oldest while the others cover ``window`` seconds."""
    covered = sum(rise.seconds for rise in rises)
    while covered - rises[0].seconds >= window:
        covered -= rises.popleft().seconds


def _newest(history: deque[_T], points: int) -> list[_T]:
    return list(history)[max(0, len(history) - points) :]


def _short(value: float) -> float:
    """Round to five digits, enough for any display."""
    return float(f"{value:.5g}")


def _rounded(value: Any) -> Any:
    """A count as it stands, any other number to five digits."""
    return value if isinstance(value, int) else _short(value)


def _short_or_none(value: float | None) -> float | None:
    return None if value is None else _short(value)
