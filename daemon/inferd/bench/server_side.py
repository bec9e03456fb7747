"""What a server reports about itself before and after a window, and the cost of a request derived from that."""

from collections.abc import Mapping
from dataclasses import dataclass

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
"""As ModelStatistics names them."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The protocol's ModelStatistics of one model, summed over its versions.

    ``succeeded`` and each of ``stages`` are (how many requests, nanoseconds) since the model was loaded.
    """

    succeeded: tuple[int, int]
    stages: Mapping[str, tuple[int, int]]
    inferences: int
    executions: int


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources used by the server's processes: CPU seconds since they started, and memory now."""

    cpu_seconds: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A server at one moment; None for what is unknown."""

    counted: Counted | None
    resources: Resources | None


@dataclass(frozen=True, slots=True)
class ServerSide:
    """A server during a window; None for what is unknown.

    ``stages`` are mean seconds for each request, ``request`` the mean seconds of a whole request as the server sees
    it, ``rows`` the rows in each run of the model. ``cpu`` is CPU seconds for each request, ``cores`` CPU seconds a
    second. ``rss_bytes`` is the memory at the end, ``rss_growth`` its growth since before the first load.
    """

    requests: int | None
    stages: Mapping[str, float] | None
    request: float | None
    rows: float | None
    cpu: float | None
    cores: float | None
    rss_bytes: int | None
    rss_growth: int | None


def during(before: Sample, after: Sample, seconds: float, answered: int, idle: Resources | None) -> ServerSide:
    """What happened between two samples that are ``seconds`` apart.

    CPU is divided by the requests that the server counted meanwhile, or by ``answered`` if it counted none.
    """
    requests = stages = request = rows = None
    if before.counted is not None and after.counted is not None:
        was, now = before.counted, after.counted
        requests = now.succeeded[0] - was.succeeded[0]
        request = _mean(was.succeeded, now.succeeded)
        means = {name: _mean(was.stages[name], now.stages[name]) for name in STAGES}
        stages = {name: mean for name, mean in means.items() if mean is not None} or None
        runs = now.executions - was.executions
        rows = (now.inferences - was.inferences) / runs if runs > 0 else None
    cpu = cores = rss_bytes = rss_growth = None
    if before.resources is not None and after.resources is not None:
        used = after.resources.cpu_seconds - before.resources.cpu_seconds
        # The server counts nothing for this model, or was restarted meanwhile: divide by the responses received.
        served = requests if requests is not None and requests > 0 else answered
        cpu = used / served if served else None
        cores = used / seconds if seconds else None
        rss_bytes = after.resources.rss_bytes
        rss_growth = rss_bytes - idle.rss_bytes if idle is not None else None
    return ServerSide(requests, stages, request, rows, cpu, cores, rss_bytes, rss_growth)


def _mean(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    count = after[0] - before[0]
    return (after[1] - before[1]) / count / 1e9 if count > 0 else None
