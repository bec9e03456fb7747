"""Synthetic snapshots of a server, as the daemon would take them of itself."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from inferd.metrics.process_usage import ProcessUsage
from inferd.metrics.snapshot import (
    DeviceSnapshot,
    ObjectiveSnapshot,
    RequestCounts,
    ServerSnapshot,
    TuningSnapshot,
    VersionSnapshot,
)
from inferd.scheduling.queue_state import QueueState

BOUNDS = (0.001, 0.01, 0.1)


def device(name: str, streams: int, threads: int, infer_requests: int, precision: str) -> DeviceSnapshot:
    """A device of which this is known."""
    return DeviceSnapshot(name, name, precision, False, streams, 0, threads, 0, infer_requests, 1, False, 0.0, 0.0, 0.0)


def model(name: str = "m", version: str = "1", **known: Any) -> VersionSnapshot:
    """A model version that is ready and has done nothing but what is ``known`` of it.

    That may be fields of the queue's state and of the requests' counts too, ``objective`` in seconds with its
    ``percentile``, ``tuning`` as a line and ``tuner``, its phase.
    """
    queue = {"limit": 40} | _taken(known, QueueState)
    bounds = known.get("bounds", BOUNDS)
    requests = {"bounds": bounds, "counts": (0,) * (len(bounds) + 1), "seconds": 0.0, "outcomes": {}, "rows": 0}
    requests |= _taken(known, RequestCounts)
    objective, percentile = known.pop("objective", None), known.pop("percentile", 99.0)
    ratio = None if objective is None else percentile / 100
    text, phase = known.pop("tuning", ""), known.pop("tuner", "")
    facts: dict[str, Any] = {"state": "READY", "reason": "", "devices": (device("CPU", 2, 4, 8, "f32"),)}
    return VersionSnapshot(
        model=name,
        version=version,
        requests=RequestCounts(**requests),
        queue=QueueState(**queue),
        objective=ObjectiveSnapshot(objective, ratio, 0.999, percentile),
        tuning=TuningSnapshot(False, {}, 0.0, 0.0, text, phase),
        **(facts | known),
    )


def server(at: float = 100.0, models: Iterable[VersionSnapshot] = (), **known: Any) -> ServerSnapshot:
    """A server that is ready and has these models."""
    usage = {"rss_bytes": 512_000_000, "cpu_seconds": 0.0} | _taken(known, ProcessUsage)
    facts: dict[str, Any] = {
        "phase": "ready",
        "version": "1.2.3",
        "openvino": "2026.4.1-22982-e213a147257",
        "started": 40.0,
    }
    return ServerSnapshot(at=at, process=ProcessUsage(**usage), versions=tuple(models), **(facts | known))


def _taken(known: dict[str, Any], kind: type) -> dict[str, Any]:
    """What of ``known`` are fields of ``kind``, which it then has no more."""
    return {one.name: known.pop(one.name) for one in fields(kind) if one.name in known}
