"""Measures the latency of a few urgent requests while all others overload the daemon.

    python -m benchmarks.priority --out build/bench

Requests with priority 1 arrive at a low rate, alone and under five times as much unprioritised load as the machine can
take: three rounds of both in turn, with urgent requests due at the same times. Bar: their p99 under the load is below
twice their p99 alone, over all rounds. A request that is not answered OK counts as infinitely slow.

Prints both latencies, writes priority.json to ``--out`` and exits with 1 when the bar is missed.
"""

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import uvloop

from benchmarks.open_loop import Figures, Outcome, poisson, quantile
from benchmarks.overload import SETTLE, Served, add_model_options, serving
from inferd._pb import open_inference_pb2 as pb

ROUNDS = 3
LOAD = 5.0
"""The unprioritised load, in multiples of the capacity."""
URGENT = 0.1
"""The urgent load, likewise: so little that urgent requests seldom wait for each other."""
RATIO_BAR = 2.0


@dataclass(frozen=True, slots=True)
class Round:
    """The urgent requests without and with the load, and the load itself."""

    alone: list[Outcome]
    loaded: list[Outcome]
    others: list[Outcome]


@dataclass(frozen=True, slots=True)
class Latency:
    """Of urgent requests: their number, the number not answered OK, and quantiles in seconds."""

    count: int
    lost: int
    p50: float
    p99: float

    @classmethod
    def of(cls, runs: Sequence[Sequence[Outcome]]) -> "Latency":
        """Over all of the equal ``runs``, without the requests due before they had settled."""
        due = [o for run in runs for o in run if o.intended >= SETTLE * 1e9]
        latencies = [o.latency / 1e9 if o.code == "OK" else math.inf for o in due]
        p50, p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
        if p50 is None or p99 is None:
            raise SystemExit("no urgent request was due; take longer --seconds")
        return cls(len(due), latencies.count(math.inf), p50, p99)

    def __str__(self) -> str:
        return f"p50 {self.p50 * 1000:.1f} ms, p99 {self.p99 * 1000:.1f} ms, {self.lost} of {self.count} lost"


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    rounds = []
    with serving(options) as served:
        for number in range(1, ROUNDS + 1):
            rounds.append(uvloop.run(_round(number, served, options.seconds)))
            alone, loaded = Latency.of([rounds[-1].alone]), Latency.of([rounds[-1].loaded])
            print(f"round {number} of {ROUNDS}: alone {alone}; under the load {loaded}", flush=True)
    alone, loaded = Latency.of([r.alone for r in rounds]), Latency.of([r.loaded for r in rounds])
    others = Figures.of([r.others for r in rounds], SETTLE, options.seconds, options.slo)
    ratio = loaded.p99 / alone.p99
    missed = not ratio < RATIO_BAR  # also where both are infinite
    print(f"\nalone            {alone}")
    print(f"under the load   {loaded}")
    print(f"the load itself  {others.offered:.1f}/s offered, {others.answered:.1f}/s answered")
    print(f"ratio of p99     {ratio:.2f} (bar below {RATIO_BAR:g})")
    report = {"model": served.model, "objective": options.slo, "capacity": served.capacity, "ratio": _number(ratio)}
    for name, seen in (("alone", alone), ("with", loaded)):
        report |= {f"{name}_{key}": _number(value) for key, value in asdict(seen).items()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "priority.json").write_text(json.dumps(report | {"others": asdict(others)}, indent=2) + "\n")
    if missed:
        print(f"MISSED: p99 under the load is {ratio:.2f} times p99 alone, not below {RATIO_BAR:g}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.priority", description=(__doc__ or "").split("\n")[0])
    add_model_options(parser)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each run")
    return parser.parse_args()


async def _round(number: int, served: Served, seconds: float) -> Round:
    urgent = _urgent(served.request)

    async def send(request: bytes, load: float, seed: int) -> list[Outcome]:
        return await poisson(served.address, request, load * served.capacity, SETTLE + seconds, seed)

    alone = await send(urgent, URGENT, number)
    loaded, others = await asyncio.gather(send(urgent, URGENT, number), send(served.request, LOAD, ROUNDS + number))
    return Round(alone, loaded, others)


def _urgent(request: bytes) -> bytes:
    """``request`` with the highest priority there is."""
    message = pb.ModelInferRequest.FromString(request)
    message.parameters["priority"].uint64_param = 1
    return message.SerializeToString()


def _number(value: float) -> float | None:
    # JSON has no infinity.
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
