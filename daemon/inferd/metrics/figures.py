"""What the server says of itself at one moment: counters since the start, and gauges.

Times are seconds; ``at`` and ``started`` are of one monotonic clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """How one model version runs on one device, as read back."""

    device: str
    streams: int
    threads: int
    infer_requests: int
    precision: str


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model version.

    ``counts`` holds the answers whose latency fell into each bucket of ``bounds``, not cumulative, and in
    one more the answers above the last bound; ``seconds`` is their sum. ``outcomes`` counts requests that
    ended, "ok" among them; ``rows`` the inferences of those. ``oldest`` is the age of the oldest request that
    waits, 0 for none. ``percentile`` is such as 99.0, and means ``objective`` where there is one. ``tuning``
    is one line about the tuner's last decision or what it does now, empty for none.
    """

    model: str
    version: str
    state: str
    reason: str
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    seconds: float
    outcomes: Mapping[str, int]
    rows: int
    waiting: int
    oldest: float
    in_flight: int
    limit: int
    running: int
    sequences: int
    devices: tuple[DeviceFigures, ...]
    objective: float | None
    percentile: float
    tuning: str


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """The server at ``at``; ``other`` counts requests that named no model of ours, by outcome."""

    at: float
    phase: str
    version: str
    openvino: str
    started: float
    rss_bytes: int
    cpu_seconds: float
    other: Mapping[str, int]
    models: tuple[ModelFigures, ...]
