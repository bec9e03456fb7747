"""Converts between a model's settings and candidates."""

from dataclasses import dataclass, replace
from typing import Any

from inferd.axes import CHOICES, QUANTITIES, ExecutionPath, Value
from inferd.config.model import ModelConfig
from inferd.engine.state import most_sequences
from inferd.engine.topology import Tunables
from inferd.engine.warmup import max_batch_rows
from inferd.tensors import Signature
from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.goal import Goal

# Infer requests per stream: one keeps it busy, a second is ready when the first ends.
_MULTIPLES: tuple[int, ...] = (1, 2, 4)
# Larger than any setting.
_ANY = 1 << 20


@dataclass(frozen=True, slots=True)
class Seeds:
    """The choices of OpenVINO's two hints, as (streams, threads, infer requests)."""

    latency: tuple[int, int, int]
    throughput: tuple[int, int, int]


def configured(config: ModelConfig, candidate: Candidate) -> ModelConfig:
    """``config`` with the settings of ``candidate``; those it leaves to the device are unchanged."""
    numbers = {axis.setting: getattr(candidate, name) for name, axis in QUANTITIES.items() if axis.setting}
    chosen = {name: (axis, value) for name, axis in CHOICES.items() if (value := getattr(candidate, name)) is not None}
    execution = config.execution.model_copy(
        update=numbers | {name: axis.word(value) for name, (axis, value) in chosen.items()}
    )
    batching = config.batching
    if batching.max_size:
        batching = batching.model_copy(update={"enabled": candidate.batch > 1, "max_batch_rows": candidate.batch})
    return config.model_copy(update={"execution": execution, "batching": batching})


def space_of(config: ModelConfig, signature: Signature, tunables: Tunables) -> Space:
    """The search space: everything the device offers, minus the axes that the settings fix.

    Settings beyond the device's limits are capped as the device would cap them, and so are streams
    without a thread or an infer request.
    """
    execution = config.execution
    threads = _threads(execution.threads, tunables)
    # More infer requests than live sequences would never be used.
    most = most_sequences(config, signature) if signature.stateful else _ANY
    most_streams = min(tunables.streams[1], threads[-1], execution.infer_requests or _ANY, most)
    least_streams = min(tunables.streams[0], most_streams)
    streams = (min(execution.streams, most_streams),) if execution.streams else _ladder(least_streams, most_streams)
    multiples = () if execution.infer_requests else _MULTIPLES
    requests = (min(execution.infer_requests, most),) if execution.infer_requests else _requests(streams, most)
    return Space(
        streams=streams,
        threads=threads,
        requests=requests,
        batch=_batches(config, signature),
        choices={axis: _allowed(axis, getattr(execution, axis), offered) for axis, offered in tunables.choices.items()},
        path=_paths(execution.path, threads),
        multiples=multiples,
    )


def seeds_of(space: Space, hints: Seeds, stored: Candidate | None = None) -> list[Candidate]:
    """The starting points: the hints' choices and the stored winner, each moved into the space.

    Their positions matter, so there may be duplicates.
    """
    found = [_as_allowed(space, Candidate(*hint)) for hint in (hints.latency, hints.throughput)]
    return [*found, *([space.clip(stored)] if stored is not None else [])]


def out_of_reach(config: ModelConfig, tunables: Tunables, candidate: Candidate) -> str:
    """Which setting of ``candidate`` neither a search nor an operator could have chosen, and its bounds; "" if none."""
    streams = max(tunables.streams[1], config.execution.streams)
    most = {
        "streams": streams,
        "threads": max(tunables.threads, streams, config.execution.threads),
        "requests": max(_MULTIPLES[-1] * streams, config.execution.infer_requests),
        # Without max_size, it sets nothing.
        "batch": config.batching.max_size or QUANTITIES["batch"].most,
    }
    for axis in QUANTITIES:
        if not 1 <= (value := getattr(candidate, axis)) <= most[axis]:
            return f"{axis} must be 1..{most[axis]}, not {value}"
    return ""


def goal_of(config: ModelConfig) -> Goal:
    """The goal that ``config`` sets."""
    objective = config.objective
    return Goal(objective.goal, objective.latency_slo, objective.percentile)


def _as_allowed(space: Space, candidate: Candidate) -> Candidate:
    """``candidate`` with the device's defaults spelt out where the space does so."""
    chosen: dict[str, Any] = {axis: space.values(axis)[0] for axis in CHOICES}
    return space.clip(replace(candidate, **chosen))


def _ladder(low: int, high: int) -> tuple[int, ...]:
    """Every number up to 4, then steps of about a half."""
    steps, value = [], max(1, low)
    while value < high:
        steps.append(value)
        value = max(value + 1, value * 3 // 2 if value >= 4 else value + 1)
    return (*steps, max(1, high))


def _threads(fixed: int, tunables: Tunables) -> tuple[int, ...]:
    if tunables.threads < tunables.streams[1]:
        # The device has no thread setting, but a space needs one thread per stream.
        return (tunables.streams[1],)
    return (min(fixed, tunables.threads),) if fixed else _ladder(1, tunables.threads)


def _paths(setting: str, threads: tuple[int, ...]) -> tuple[ExecutionPath, ...]:
    if threads == (1,):
        # The engine always runs one stream of one thread async.
        return ("async",)
    # Inline runs have nothing to tune, see tuner/plan.py.
    return ("sync",) if setting == "sync" else ("async",) if setting == "async" else ("async", "sync")


def _requests(streams: tuple[int, ...], most: int) -> tuple[int, ...]:
    return tuple(sorted({k * s for k in _MULTIPLES for s in streams if k * s <= most}))


def _batches(config: ModelConfig, signature: Signature) -> tuple[int, ...]:
    most = max_batch_rows(config, signature)
    powers = [2**p for p in range(most.bit_length()) if 2**p < most]
    return (*powers, most)


def _allowed(axis: str, setting: str, offered: tuple[Value, ...]) -> tuple[Value, ...]:
    return offered if setting == "auto" else (CHOICES[axis].words[setting],)
