"""What several workers say of themselves as what one server would: counts added, and each model once."""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from inferd.lifecycle import ModelState
from inferd.metrics.figures import DeviceFigures, ModelFigures, ServerFigures


@dataclass(frozen=True, slots=True)
class SupervisorFacts:
    """What only the supervisor knows: the moment and that of its start (monotonic seconds), its own memory in bytes and
    CPU seconds, and the phase it is in."""

    at: float
    started: float
    rss_bytes: int
    cpu_seconds: float
    phase: str


def as_json(figures: ServerFigures) -> bytes:
    """``figures`` for another process of the same release."""
    return json.dumps(asdict(figures), separators=(",", ":")).encode()


def from_json(text: bytes) -> ServerFigures:
    """What :func:`as_json` made."""
    fields: dict[str, Any] = json.loads(text)
    return ServerFigures(**{**fields, "models": tuple(map(_model, fields["models"]))})


def merge(
    parts: Mapping[int, ServerFigures], retired: ServerFigures | None, whole: SupervisorFacts
) -> ServerFigures | None:
    """The server that all ``parts``, by the number of the worker, are together; None where there are none.

    ``retired`` are the counts of workers that have ended.
    """
    if not parts:
        return None
    ended = [retired] if retired is not None else []
    first = next(iter(parts.values()))
    models: dict[tuple[str, str], dict[int, ModelFigures]] = {}
    for index, part in sorted(parts.items()):
        for model in part.models:
            models.setdefault((model.model, model.version), {})[index] = model
    retired_models = {(m.model, m.version): m for one in ended for m in one.models}
    return ServerFigures(
        at=whole.at,
        phase=whole.phase,
        version=first.version,
        openvino=first.openvino,
        started=whole.started,
        rss_bytes=whole.rss_bytes + sum(part.rss_bytes for part in parts.values()),
        cpu_seconds=whole.cpu_seconds + sum(part.cpu_seconds for part in (*parts.values(), *ended)),
        other=_sums(part.other for part in (*parts.values(), *ended)),
        models=tuple(_of_all(models[key], retired_models.get(key)) for key in sorted(models)),
    )


def add_retired(before: ServerFigures | None, last: ServerFigures) -> ServerFigures:
    """``before`` with what a worker that has ended had counted, its ``last`` report, added."""
    if before is None:
        return last
    models = {(m.model, m.version): m for m in before.models}
    for model in last.models:
        key = model.model, model.version
        models[key] = _counted(model, [models[key]] if key in models else [])
    return replace(
        last,
        cpu_seconds=before.cpu_seconds + last.cpu_seconds,
        other=_sums((before.other, last.other)),
        models=tuple(models.values()),
    )


def _of_all(whose: Mapping[int, ModelFigures], retired_models: ModelFigures | None) -> ModelFigures:
    models = list(whose.values())
    best = next((m for m in models if m.state == ModelState.READY.value), models[0])
    return replace(
        _counted(
            best, [*(m for m in models if m is not best), *([retired_models] if retired_models is not None else [])]
        ),
        reason=_reason(whose, best),
        waiting=sum(m.waiting for m in models),
        oldest=max(m.oldest for m in models),
        in_flight=sum(m.in_flight for m in models),
        limit=sum(m.limit for m in models),
        running=sum(m.running for m in models),
        sequences=sum(m.sequences for m in models),
        devices=_devices([device for m in models for device in m.devices]),
        tuning=next((m.tuning for m in models if m.tuning), ""),
    )


def _counted(model: ModelFigures, others: Sequence[ModelFigures]) -> ModelFigures:
    """``model`` with what ``others`` have counted added."""
    counts = list(model.counts)
    for other in others:
        for bound, count in zip((*other.bounds, float("inf")), other.counts, strict=True):
            # Where the bounds differ, because an objective has just changed, each count goes where its upper bound is.
            counts[bisect_left(model.bounds, bound)] += count
    every = (model, *others)
    return replace(
        model,
        counts=tuple(counts),
        seconds=sum(m.seconds for m in every),
        outcomes=_sums(m.outcomes for m in every),
        rows=sum(m.rows for m in every),
    )


def _reason(whose: Mapping[int, ModelFigures], best: ModelFigures) -> str:
    """Why it does not answer; where it does, which workers don't have it."""
    if best.state != ModelState.READY.value:
        return best.reason
    missing = (
        f"{m.state} in worker {index}{f' ({m.reason})' if m.reason else ''}"
        for index, m in whose.items()
        if m.state != best.state
    )
    return "; ".join((*([best.reason] if best.reason else []), *missing))


def _devices(devices: Iterable[DeviceFigures]) -> tuple[DeviceFigures, ...]:
    found: dict[str, DeviceFigures] = {}
    for one in devices:
        known = found.get(one.device, replace(one, streams=0, threads=0, infer_requests=0))
        found[one.device] = replace(
            known,
            streams=known.streams + one.streams,
            threads=known.threads + one.threads,
            infer_requests=known.infer_requests + one.infer_requests,
        )
    return tuple(found.values())


def _sums(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _model(fields: dict[str, Any]) -> ModelFigures:
    devices = tuple(DeviceFigures(**device) for device in fields["devices"])
    return ModelFigures(
        **{**fields, "devices": devices, "bounds": tuple(fields["bounds"]), "counts": tuple(fields["counts"])}
    )
