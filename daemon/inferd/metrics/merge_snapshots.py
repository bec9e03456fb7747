"""The snapshots of several workers as that of one server: counts added, and each model version once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from inferd import merging
from inferd.lifecycle import ModelState
from inferd.metrics import record_json
from inferd.metrics.process_usage import ProcessUsage
from inferd.metrics.snapshot import ServerSnapshot, VersionKey, VersionSnapshot


@dataclass(frozen=True, slots=True)
class SupervisorFacts:
    """What only the supervisor knows: the moment and that of its start (monotonic seconds), its own process, and the
    phase it is in."""

    at: float
    started: float
    process: ProcessUsage
    phase: str


def as_json(snapshot: ServerSnapshot) -> bytes:
    """``snapshot`` for another process of the same release."""
    return record_json.encode(snapshot).encode()


def from_json(text: bytes) -> ServerSnapshot:
    """What :func:`as_json` made."""
    return record_json.decode(ServerSnapshot, json.loads(text))


def merge(
    parts: Mapping[int, ServerSnapshot], retired: ServerSnapshot | None, whole: SupervisorFacts
) -> ServerSnapshot | None:
    """The server that all ``parts``, by the number of the worker, are together; None where there are none.

    ``retired`` are the counts of workers that have ended.
    """
    if not parts:
        return None
    ended = [retired] if retired is not None else []
    versions: dict[VersionKey, dict[int, VersionSnapshot]] = {}
    for index, part in sorted(parts.items()):
        for version in part.versions:
            versions.setdefault(version.key, {})[index] = version
    retired_versions = {version.key: version for one in ended for version in one.versions}
    server = merging.with_retired(merging.merged(list(parts.values())), ended)
    return replace(
        server,
        at=whole.at,
        started=whole.started,
        phase=whole.phase,
        process=merging.merged([whole.process, server.process]),
        versions=tuple(_merged(versions[key], retired_versions.get(key)) for key in sorted(versions)),
    )


def add_retired(before: ServerSnapshot | None, last: ServerSnapshot) -> ServerSnapshot:
    """``before`` with what a worker that has ended had counted, its ``last`` report, added."""
    if before is None:
        return last
    versions = {version.key: version for version in before.versions}
    for version in last.versions:
        known = versions.get(version.key)
        versions[version.key] = merging.with_retired(version, [known] if known is not None else [])
    return replace(merging.with_retired(last, [before]), versions=tuple(versions.values()))


def _merged(by_worker: Mapping[int, VersionSnapshot], retired: VersionSnapshot | None) -> VersionSnapshot:
    every = list(by_worker.values())
    best = next((one for one in every if one.state == ModelState.READY.value), every[0])
    version = merging.merged([best, *(one for one in every if one is not best)])
    version = merging.with_retired(version, [retired] if retired is not None else [])
    return replace(version, reason=_reason(by_worker, best))


def _reason(by_worker: Mapping[int, VersionSnapshot], best: VersionSnapshot) -> str:
    """Why it does not answer; where it does, which workers don't have it."""
    if best.state != ModelState.READY.value:
        return best.reason
    missing = (
        f"{one.state} in worker {index}{f' ({one.reason})' if one.reason else ''}"
        for index, one in by_worker.items()
        if one.state != best.state
    )
    return "; ".join((*([best.reason] if best.reason else []), *missing))
