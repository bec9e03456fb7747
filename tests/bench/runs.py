"""Runs made up for tests."""

from collections.abc import Sequence

from inferd.bench.latencies import Latencies
from inferd.bench.load import Closed, Load
from inferd.bench.report import BenchRun, LatencyObjective, Step
from inferd.bench.server_side import STAGES, ServerSide
from inferd.bench.tally import OK, LoadWindow

MS = 1_000_000
SILENT = ServerSide(None, None, None, None, None, None, None, None)
TOLD = ServerSide(
    requests=90,
    stages={name: 0.001 * (place + 1) for place, name in enumerate(STAGES)},
    request=0.0105,
    rows=2.5,
    cpu=0.002,
    cores=0.5,
    rss_bytes=300_000_000,
    rss_growth=1_000_000,
)


def window(
    latencies: Sequence[int] = (10, 20, 30),
    seconds: float = 1.0,
    errors: dict[str, int] | None = None,
    *,
    in_time: int | None = None,
    lags: Sequence[int] = (),
    busiest: float = 0.1,
) -> LoadWindow:
    """Answers with ``latencies`` in milliseconds, all of which came in the window; ``lags`` likewise."""
    count = len(latencies)
    kept = count if in_time is None else in_time
    codes = {**({OK: count} if count else {}), **(errors or {})}
    return LoadWindow(
        seconds,
        codes,
        count,
        kept,
        kept,
        Latencies.of([v * MS for v in latencies]),
        Latencies.of([v * MS for v in lags]),
        busiest,
        busiest,
    )


def step(
    load: Load | None = None,
    seen: LoadWindow | None = None,
    server: ServerSide = SILENT,
    objective: LatencyObjective | None = None,
) -> Step:
    return Step(load or Closed(1), seen or window(), server, objective)


def run(
    *steps: Step, objective: LatencyObjective | None = None, processes: int = 1, interrupted: bool = False
) -> BenchRun:
    return BenchRun("inferd 1.0", "m", "1", "unary", "x FP32 [1,4]", processes, objective, steps, interrupted)
