"""Measures the CPU of recording a request.

    python -m benchmarks.recording --out build/bench

Observations as a busy daemon makes them (unary, on a device, all eight stages passed, several models) go to what
records them, one after the other on one thread. Rounds alternate with calls of a function that does nothing, whose
time is subtracted. Time is the thread's own CPU time. Bar, on the median of the rounds:

- making the observation, counting it, and passing it to the request log and the tracer, which are off, takes at most
  3 us, also where the client's request is part of a trace and leaves an exemplar.

Prints the figures, writes recording.json to ``--out`` and exits with 1 when the bar is missed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from inferd.logs import RequestLog
from inferd.metrics.recorder import Recorder
from inferd.requests import Observation, Stages
from inferd.trace_context import TraceContext
from inferd.tracing.sampling import Tracer

BAR = 3000
"""Nanoseconds."""
MODELS = 8
OBJECTIVE = 0.02
DISTINCT = 512
"""Observations that are reused: few enough to stay in a core's cache, as fresh ones would."""

# Microseconds: decode, queue, batch, input, compute, handover, output, encode.
_USUAL = (40, 150, 20, 15, 4000, 60, 15, 30)


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds a request over the rounds, less those of an empty call."""

    what: str
    median: float
    least: float
    most: float
    judged: bool

    @classmethod
    def of(cls, what: str, rounds: Sequence[float], empty: float, judged: bool) -> "Cost":
        return cls(what, statistics.median(rounds) - empty, min(rounds) - empty, max(rounds) - empty, judged)


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    times = options.requests // DISTINCT
    plain, traced = observations(DISTINCT, traced=False) * times, observations(DISTINCT, traced=True) * times
    subjects: list[tuple[str, Callable[[Observation], object], list[Observation], bool]] = [
        ("nothing, an empty call", _nothing, plain, False),
        ("making the observation", _made, plain, False),
        ("counting it", _recorder().observe, plain, False),
        ("counting it, in a trace", _recorder().observe, traced, False),
        ("all: making, counting, log and tracer off", _all(_recorder()), plain, True),
        ("all, in a trace", _all(_recorder()), traced, True),
    ]
    taken: dict[str, list[float]] = {what: [] for what, *_ in subjects}
    for number in range(options.rounds + 1):
        # The order alternates, so that drift affects all alike.
        for what, call, seen, _ in subjects if number % 2 else reversed(subjects):
            taken[what].append(_timed(call, seen))
        print(f"round {number} of {options.rounds}" if number else "warmed up", flush=True)
    empty = statistics.median(taken[subjects[0][0]][1:])
    costs = [Cost.of(what, taken[what][1:], empty, judged) for what, _, _, judged in subjects[1:]]
    _print(costs, empty, options)
    misses = [f"{c.what} takes {c.median:.0f} ns, above {BAR}" for c in costs if c.judged and c.median > BAR]
    report = {"rounds": options.rounds, "requests": options.requests, "empty_call": empty}
    report |= {"costs": [asdict(cost) for cost in costs], "bar": BAR, "missed": misses}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "recording.json").write_text(json.dumps(report, indent=2) + "\n")
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recording", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often each is measured")
    parser.add_argument("--requests", type=int, default=50_000, help="observations in a round")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of recording.json")
    options = parser.parse_args()
    if options.rounds < 7:
        parser.error("--rounds must be at least 7")
    return options


def observations(number: int, *, traced: bool) -> list[Observation]:
    """Successful requests whose stages take their usual time, within a factor of two or three."""
    chance = np.random.default_rng(0)
    spent = chance.lognormal(np.log([n * 1000 for n in _USUAL]), 0.6, (number, len(_USUAL))).astype(int)
    made = []
    for place, durations in enumerate(spent.tolist()):
        times = accumulate(durations, initial=1_000_000_000 + place * 1000)
        stages = Stages(*times)
        trace = TraceContext(f"{place + 1:032x}", "1" * 16, "2" * 16, sampled=True) if traced else None
        made.append(
            Observation(
                f"model-{place % MODELS}",
                "1",
                "ok",
                stages,
                device="CPU",
                id=f"request {place}",
                received_bytes=2100,
                sent_bytes=2080,
                trace=trace,
            )
        )
    return made


def _recorder() -> Recorder:
    """A recorder that knows the models, as after their load."""
    recorder = Recorder()
    recorder.follow({(f"model-{number}", "1"): OBJECTIVE for number in range(MODELS)})
    return recorder


def _nothing(_: Observation) -> None:
    pass


def _made(seen: Observation) -> Observation:
    """The observation that the dispatcher makes of a request that has ended."""
    return Observation(
        seen.model,
        seen.version,
        "ok",
        seen.stages,
        seen.device,
        seen.id,
        seen.rows,
        seen.batch_rows,
        seen.leader,
        seen.error,
        seen.received_bytes,
        seen.sent_bytes,
        seen.trace,
    )


def _all(recorder: Recorder) -> Callable[[Observation], None]:
    """All that the dispatcher and then the daemon do with it, as in app.py."""
    log, tracer = RequestLog("off"), Tracer("", 0.0, lambda _: "")

    def observe(seen: Observation) -> None:
        made = _made(seen)
        recorder.observe(made)
        if log.which != "off":
            log.observe(made)
        if made.trace is not None:
            tracer.observe(made)

    return observe


def _timed(call: Callable[[Observation], object], seen: Sequence[Observation]) -> float:
    """Nanoseconds a call."""
    start = time.thread_time_ns()
    for one in seen:
        call(one)
    return (time.thread_time_ns() - start) / len(seen)


def _print(costs: Sequence[Cost], empty: float, options: argparse.Namespace) -> None:
    print(f"\nns a request, {options.rounds} rounds of {options.requests}, an empty call ({empty:.0f} ns) taken off\n")
    print("| what | median | least | most | bar |\n|---|---:|---:|---:|---:|")
    for cost in costs:
        bar = str(BAR) if cost.judged else ""
        print(f"| {cost.what} | {cost.median:.0f} | {cost.least:.0f} | {cost.most:.0f} | {bar} |")


if __name__ == "__main__":
    sys.exit(main())
