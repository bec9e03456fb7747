"""Made-up figures of a server, as the daemon would read them from itself."""

from collections.abc import Iterable
from typing import Any

from inferd.metrics.figures import DeviceFigures, ModelFigures, ServerFigures

BOUNDS = (0.001, 0.01, 0.1)


def model(name: str = "m", version: str = "1", **known: Any) -> ModelFigures:
    """A model that is ready and has done nothing but what is ``known`` of it."""
    figures: dict[str, Any] = {
        "state": "READY",
        "reason": "",
        "bounds": BOUNDS,
        "counts": (0,) * (len(known.get("bounds", BOUNDS)) + 1),
        "seconds": 0.0,
        "outcomes": {},
        "rows": 0,
        "waiting": 0,
        "oldest": 0.0,
        "in_flight": 0,
        "limit": 40,
        "running": 0,
        "sequences": 0,
        "devices": (DeviceFigures("CPU", 2, 4, 8, "f32"),),
        "objective": None,
        "percentile": 99.0,
        "tuning": "",
    }
    return ModelFigures(model=name, version=version, **(figures | known))


def server(at: float = 100.0, models: Iterable[ModelFigures] = (), **known: Any) -> ServerFigures:
    """A server that is ready and has these models."""
    figures: dict[str, Any] = {
        "phase": "ready",
        "version": "1.2.3",
        "openvino": "2026.4.1-22982-e213a147257",
        "started": 40.0,
        "rss_bytes": 512_000_000,
        "cpu_seconds": 0.0,
        "other": {},
    }
    return ServerFigures(at=at, models=tuple(models), **(figures | known))
