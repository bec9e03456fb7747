"""Compares the tuner's choice with an exhaustive sweep, which takes five times as long, and with OpenVINO's hints.

    python -m benchmarks.tuning --out build/bench

For each model the sweep measures every candidate of the search space, ``--windows`` windows each. Its latencies are
then read under three objectives: tight and medium multiples of the latency of a request alone, and none, where every
response counts. The tuner gets a fifth of the sweep's time for each. Its choice, the sweep's best and the choices of
OpenVINO's two hints are then measured in turn, so that other work affects all alike. Bars:

- the choice has at least 97 % of the best point's goodput (responses in time a second);
- the search took at most 20 % of the sweep's time;
- the choice has at least 98 % of the goodput of the better hint.

Prints a table, writes tuning.json and tuning.png to ``--out``, and exits with 1 when a bar is missed. Where no
candidate of the sweep keeps the objective, the row says so and has no bar.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import onnx
from tests.conftest import ROOT

from benchmarks import plot_tuning
from inferd.deployment.settings import source_of
from inferd.engine.cache import BlobCache
from inferd.engine.cpu_budget import cpu_budget
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.repository.find import Repository
from inferd.tuner.plan import TuningPlan, key_of, plan, tunable_device
from inferd.tuner.probe_process import WINDOW_SECONDS, ProbeJob, ProbeProcess
from inferd.tuner.session import tune
from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimates
from inferd.tuning.goal import Goal
from inferd.tuning.measurement import Measurement, MeasurementWindow
from inferd.tuning.search import Search

LIGHT = ("squeezenet", "shufflenet", "resnet50")
MAGIKA = "magika"
OBJECTIVES = {"tight": 1.5, "medium": 4.0, "none": None}
"""In multiples of the median latency of a request alone."""
PERCENTILE = 99.0
GOODPUT_BAR, TIME_BAR, HINT_BAR = 0.97, 0.20, 0.98
LATENCY_HINT, THROUGHPUT_HINT = "latency hint", "throughput hint"


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one objective; goodputs are of the paired runs, in responses a second, and times in seconds."""

    model: str
    objective: str
    latency: float | None
    candidates: int
    choice: str
    best: str
    reachable: bool
    choice_goodput: float
    best_goodput: float
    latency_hint_goodput: float
    throughput_hint_goodput: float
    sweep_seconds: float
    search_seconds: float
    looks: int

    @property
    def of_best(self) -> float:
        """The choice's goodput over the best's."""
        return _ratio(self.choice_goodput, self.best_goodput)

    @property
    def of_hint(self) -> float:
        """The choice's goodput over the better hint's."""
        return _ratio(self.choice_goodput, max(self.latency_hint_goodput, self.throughput_hint_goodput))

    @property
    def of_time(self) -> float:
        """The search's time over the sweep's."""
        return self.search_seconds / self.sweep_seconds


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = Repository(_repository(Path(scratch) / "models", options))
        threads = cpu_budget().threads
        cache = BlobCache(Path(scratch) / "cache", 4 << 30)
        engine = Engine(threads, cache)
        for name in options.models:
            entry = repository.find(name)
            rows += _model(engine, cache, threads, source_of(entry, entry.versions[0]), options)
    misses = [miss for row in rows for miss in _misses(row)]
    _print(rows)
    report = {
        "windows": options.windows,
        "rounds": options.rounds,
        "rows": [asdict(r) | {"of_best": r.of_best, "of_hint": r.of_hint, "of_time": r.of_time} for r in rows],
        "missed": misses,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tuning.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_tuning.draw(report, options.out / "tuning.png")
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*LIGHT, MAGIKA], help="of light_* in onnx's wheel, and magika")
    parser.add_argument("--windows", type=int, default=8, help="windows a candidate gets in the sweep")
    parser.add_argument("--rounds", type=int, default=12, help="turns of the paired run")
    parser.add_argument("--max-batch", type=int, default=4, help="rows that a batch of magika's requests may have")
    parser.add_argument("--repository", type=Path, default=ROOT / "models", help="where magika is taken from")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


def _repository(root: Path, options: argparse.Namespace) -> Path:
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for name in options.models:
        (root / name / "1").mkdir(parents=True)
        file = root / name / "1" / "model.onnx"
        if name == MAGIKA:
            shutil.copyfile(options.repository / MAGIKA / "1" / "model.onnx", file)
            (root / name / "model.toml").write_text(f"[batching]\nmax_size = {options.max_batch}\n")
        else:
            shutil.copyfile(light / f"light_{name}.onnx", file)
    return root


# -- one model --------------------------------------------------------------------


def _model(
    engine: Engine, cache: BlobCache, threads: int, source: ModelSource, options: argparse.Namespace
) -> list[Row]:
    device, why = tunable_device(engine, source)
    if not device:
        raise SystemExit(f"{source.name} can't be tuned: {why}")
    job = ProbeJob(source, cache.directory, cache.max_bytes, threads, WINDOW_SECONDS)
    key = key_of(engine, source, device)
    with ProbeProcess(job) as probe:
        work = plan(engine, source, device, key, probe.hints())
        seen, seconds = _sweep(probe, work, options.windows)
    alone = median(x for w in seen[work.seeds[0]] for x in w.latencies)
    print(f"{source.name}: a request alone takes {alone * 1000:.2f} ms at the median", flush=True)
    return [_objective(job, work, seen, seconds, name, alone, options) for name in OBJECTIVES]


def _sweep(
    probe: ProbeProcess, work: TuningPlan, windows: int
) -> tuple[dict[Candidate, tuple[MeasurementWindow, ...]], float]:
    """Every candidate's windows, and the seconds of the sweep."""
    seen: dict[Candidate, tuple[MeasurementWindow, ...]] = {}
    candidates = list(work.space.all())
    print(f"{work.source.name}: sweeping {len(candidates)} candidates", flush=True)
    begun = said = time.monotonic()
    for number, candidate in enumerate(candidates, 1):
        measured = probe.measure(candidate, windows)
        if measured.failure is None and measured.effective == candidate:
            seen[candidate] = measured.windows
        if time.monotonic() - said > 15:
            said = time.monotonic()
            print(f"  {number} of {len(candidates)} after {said - begun:.0f} s", flush=True)
    return seen, time.monotonic() - begun


def _objective(
    job: ProbeJob,
    work: TuningPlan,
    seen: dict[Candidate, tuple[MeasurementWindow, ...]],
    sweep_seconds: float,
    name: str,
    alone: float,
    options: argparse.Namespace,
) -> Row:
    factor = OBJECTIVES[name]
    goal = Goal("throughput", factor and factor * alone, PERCENTILE)
    looks = 0
    begun = time.monotonic()
    with ProbeProcess(job) as probe:

        def measure(candidate: Candidate, windows: int) -> Measurement:
            nonlocal looks
            looks += 1
            return probe.measure(candidate, windows)

        # The budget leaves time for the process to start and to end.
        budget = TIME_BAR * sweep_seconds - 2.0
        outcome = tune(Search(work.space, goal, work.seeds, budget=budget), measure, budget)
        search_seconds = time.monotonic() - begun
        if outcome.winner is None:
            raise SystemExit(f"{work.source.name}: {outcome.reason}")
        evidence = Estimates(goal)
        for candidate, windows in seen.items():
            evidence.add(candidate, windows)
        ranking = evidence.ranking()
        best, reachable = ranking[0].candidate, ranking[0].eligible
        choice = outcome.winner.candidate
        pair = {"choice": choice, "best": best, LATENCY_HINT: work.seeds[0], THROUGHPUT_HINT: work.seeds[-1]}
        goodput = _paired(probe, pair, goal.latency, options.rounds)
    row = Row(
        work.source.name,
        name,
        goal.latency,
        work.space.size,
        choice.describe(),
        best.describe(),
        reachable,
        goodput["choice"],
        goodput["best"],
        goodput[LATENCY_HINT],
        goodput[THROUGHPUT_HINT],
        sweep_seconds,
        search_seconds,
        looks,
    )
    print(
        f"  {name}: {row.of_best:.3f} of the best, {row.of_hint:.3f} of the better hint, {row.of_time:.0%} of the time"
    )
    print(f"    {outcome.reason}", flush=True)
    return row


def _paired(probe: ProbeProcess, sides: dict[str, Candidate], latency: float | None, rounds: int) -> dict[str, float]:
    """The median goodput of each side over ``rounds``, in each of which every side is measured once.

    Sides that are the same candidate are measured once.
    """
    candidates = list(dict.fromkeys(sides.values()))
    rates: dict[Candidate, list[float]] = {c: [] for c in candidates}
    for number in range(rounds):
        # Each side goes first equally often.
        for candidate in candidates[number % len(candidates) :] + candidates[: number % len(candidates)]:
            measured = probe.measure(candidate, 2)
            rates[candidate] += [w.within(latency) / w.seconds for w in measured.windows]
    return {name: median(rates[c]) if rates[c] else 0.0 for name, c in sides.items()}


# -- the report -------------------------------------------------------------------


def _misses(row: Row) -> list[str]:
    if not row.reachable:
        return []
    where = f"{row.model}, {row.objective}:"
    found = []
    if row.of_best < GOODPUT_BAR:
        found.append(f"{where} {row.of_best:.3f} of the best point's goodput, below {GOODPUT_BAR}")
    if row.of_time > TIME_BAR:
        found.append(f"{where} {row.of_time:.0%} of the sweep's time, above {TIME_BAR:.0%}")
    if row.of_hint < HINT_BAR:
        found.append(f"{where} {row.of_hint:.3f} of the better hint's goodput, below {HINT_BAR}")
    return found


def _print(rows: Sequence[Row]) -> None:
    print("\ngoodput in answers a second within the objective; hints are OpenVINO's LATENCY and THROUGHPUT")
    print(
        "model        objective        ms  points  sweep s  search s  looks     choice       best    LATENCY"
        "  THROUGHPUT  of best  of hint  of time"
    )
    for r in rows:
        reach = "" if r.reachable else "  (out of reach)"
        print(
            f"{r.model:12} {r.objective:9} {_milliseconds(r.latency):>9} {r.candidates:7} {r.sweep_seconds:8.0f} "
            f"{r.search_seconds:9.1f} {r.looks:6} {r.choice_goodput:10.1f} {r.best_goodput:10.1f} "
            f"{r.latency_hint_goodput:10.1f} {r.throughput_hint_goodput:11.1f} {r.of_best:8.3f} {r.of_hint:8.3f} "
            f"{r.of_time:8.0%}{reach}"
        )
    for r in rows:
        print(f"{r.model}, {r.objective}: chose {r.choice}; best was {r.best}")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f}"


def _ratio(one: float, other: float) -> float:
    return one / other if other else 1.0


if __name__ == "__main__":
    sys.exit(main())
