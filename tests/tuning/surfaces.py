"""Synthetic devices whose true figures are known: closed-loop queues with lognormal response times.

The maker of a surface seeds ``Random``, so that each surface can be made again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from statistics import NormalDist

from inferd.tuning.candidates import Candidate, CompileKey, Space
from inferd.tuning.goal import Goal
from inferd.tuning.measurement import Measurement, MeasurementWindow
from inferd.tuning.outcome import Outcome
from inferd.tuning.search import Look, Search

FAMILIES = ("unimodal", "plateau", "noisy", "cliff", "clamping", "two basins", "drifting")
# Times the latency of one request alone; None is no objective, 0 goes for the lowest latency.
OBJECTIVES: dict[str, float | None] = {"tight": 1.3, "medium": 3.0, "loose": 12.0, "none": None, "latency": 0.0}

# Seconds of a window, of a warm-up, and how many windows a sweep gives each candidate.
WINDOW, WARM_UP, SWEEP = 0.5, 0.1, 8
_NORMAL = NormalDist()
_DRAWN = tuple(map(Random(1).gauss, [0.0] * 5000, [1.0] * 5000))

SPACES = {
    2: Space((1, 2), (1, 2), (1, 2, 4, 8), (1, 2, 4, 8), {"pinning": (True, False)}, path=("async", "sync")),
    8: Space(
        (1, 2, 4, 8), (2, 4, 8), (1, 2, 4, 8, 16), (1, 2, 4, 8), {"pinning": (True, False)}, path=("async", "sync")
    ),
    24: Space(
        (1, 2, 3, 4, 6, 9, 13, 19, 24),
        (1, 2, 4, 6, 9, 13, 19, 24),
        tuple(sorted({k * s for k in (1, 2, 4) for s in (1, 2, 3, 4, 6, 9, 13, 19, 24)})),
        (1, 2, 4, 8, 16),
        {"pinning": (True, False), "hyper_threading": (True, False)},
        path=("async", "sync"),
        multiples=(1, 2, 4),
    ),
}


@dataclass(frozen=True)
class Surface:
    """A device, as factors and parts of one. ``work`` is the seconds of a run on one thread."""

    space: Space
    work: float
    # What more threads don't make faster, what more rows don't make longer, what threads cost each other.
    serial: float
    fixed: float
    contention: float
    # Seconds lost between runs on either path; the sync one's grow with its threads.
    gap: float
    gap_sync: float
    crowding: float
    pinned: float
    threaded: float
    # The spread of a run's time, and of windows'.
    jitter: float
    noise: float
    compile: float
    # How often a window is halved; how much slower the machine gets for a while.
    disturbed: float = 0.0
    drift: float = 0.0
    # Rates come in steps of this factor; a middle number of streams is this much worse.
    steps: float = 0.0
    valley: float = 0.0
    # More rows in flight than this don't fit.
    cache: float = math.inf
    clamp: Callable[[Candidate], Candidate] = lambda candidate: candidate
    fails: Callable[[Candidate], bool] = lambda _: False

    def runs(self, c: Candidate) -> float:
        """Runs a second, without noise. By Little's law, their latency is the requests in flight through this."""
        cores, streams = self.space.threads[-1], self.space.streams[-1]
        busy, each = min(c.requests, c.streams), c.threads / c.streams
        time = self.work * (self.fixed + (1 - self.fixed) * c.batch) * (self.serial + (1 - self.serial) / each)
        time *= 1 + self.contention * (busy * each - 1) / cores
        time *= (self.pinned if c.pinning else 1) * (self.threaded if c.hyper_threading else 1)
        off_middle = abs(math.log2(c.streams) / max(1, math.log2(streams)) - 0.5)
        time *= 1 + self.valley * max(0, 1 - 3 * off_middle)
        time *= 3 if c.requests * c.batch > self.cache else 1
        gap = self.gap_sync * (1 + self.crowding * c.requests) if c.path == "sync" else self.gap
        # What waits behind a run starts at once when it ends.
        rate = busy / (time + gap * max(0.0, 1 - (c.requests - c.streams) / c.streams))
        return math.exp(math.floor(math.log(rate) / self.steps) * self.steps) if self.steps else rate

    def latency(self, candidate: Candidate) -> float:
        """The median, in seconds."""
        return candidate.requests / self.runs(candidate)

    def tail(self, candidate: Candidate, percentile: float) -> float:
        """The latency that so many per cent don't exceed."""
        spread = math.hypot(self.jitter, self.noise)
        return self.latency(candidate) * math.exp(spread * _NORMAL.inv_cdf(percentile / 100))

    def share(self, candidate: Candidate, latency: float | None) -> float:
        """The part of the answers within ``latency``, over all that the machine goes through."""
        if latency is None:
            return 1.0
        spread, room = math.hypot(self.jitter, self.noise), math.log(latency / self.latency(candidate))
        phases = [math.log(1 + self.drift * math.sin(math.pi * i / 6)) for i in range(12 if self.drift else 1)]
        return sum(_NORMAL.cdf((room + phase) / spread) for phase in phases) / len(phases)

    def window(self, candidate: Candidate, at: float, chance: Random) -> MeasurementWindow:
        """What is seen of it from second ``at`` on."""
        speed = math.exp(chance.gauss(0, self.noise)) * (1 + self.drift * math.sin(at / 15))
        speed *= 0.5 if chance.random() < self.disturbed else 1
        rate, start = self.runs(candidate) * speed, chance.randrange(len(_DRAWN))
        runs = max(1, round(rate * WINDOW))
        drawn = sorted((_DRAWN + _DRAWN)[start : start + runs])
        median = candidate.requests / rate
        return MeasurementWindow(
            WINDOW, tuple(median * math.exp(self.jitter * z) for z in drawn for _ in range(candidate.batch))
        )

    def sweep(self) -> float:
        """Seconds to measure every candidate, each model compiled once."""
        return _parts(self.space) * self.compile + self.space.size * (WARM_UP + SWEEP * WINDOW)


@cache
def _parts(space: Space) -> int:
    """How many models have to be compiled for all of ``space``."""
    return len({c.compile_key for c in space.all()})


def surface_of(family: str, cores: int, chance: Random) -> Surface:
    """One of ``family``, on a machine with one of the numbers of cores of :data:`SPACES`."""
    draw, space = chance.uniform, SPACES[cores]
    surface = Surface(
        space,
        work=0.004 * cores,
        serial=draw(0.02, 0.4),
        fixed=draw(0, 0.7),
        contention=draw(0, 0.6),
        gap=0.004 * draw(0.01, 0.2),
        gap_sync=0.004 * draw(0, 0.15),
        crowding=draw(0, 0.3),
        pinned=draw(0.9, 1.1),
        threaded=draw(0.85, 1.2),
        jitter=draw(0.03, 0.15),
        noise=draw(0.005, 0.02),
        compile=draw(0.5, 3),
    )
    match family:
        case "plateau":
            return replace(surface, steps=draw(0.05, 0.2))
        case "noisy":
            return replace(surface, noise=draw(0.05, 0.1), disturbed=0.05)
        case "cliff":
            limit, rows = chance.choice(space.streams), space.requests[-1] * space.batch[-1]
            fails: list[Callable[[Candidate], bool]] = [
                lambda c: c.streams > limit and c.pinning is True,
                lambda c: c.batch == space.batch[-1],
                lambda c: c.pinning is False and c.threads < space.threads[-1],
            ]
            return replace(surface, cache=rows ** draw(0.2, 0.8), fails=chance.choice(fails), noise=draw(0.01, 0.04))
        case "clamping":
            streams = chance.choice(space.streams)
            threads = chance.choice([t for t in space.threads if t >= streams])
            return replace(
                surface,
                clamp=lambda c: replace(
                    c, streams=min(c.streams, streams), threads=min(c.threads, threads), pinning=False
                ),
            )
        case "two basins":
            return replace(surface, valley=draw(0.3, 0.8))
        case "drifting":
            return replace(surface, drift=draw(0.03, 0.08), noise=draw(0.01, 0.04))
    return surface


def detector(chance: Random) -> Surface:
    """As an object detector of 60 ms on two cores: a second thread makes a run 1.5 times as fast, a second stream the
    model. Two streams give a third more answers, of which some take more than twice as long as one run by itself."""
    surface = surface_of("unimodal", 2, chance)
    space = replace(surface.space, batch=(1,))
    return replace(
        surface, space=space, work=0.09, serial=1 / 3, contention=0.0, gap=0.0005, gap_sync=0.0005, jitter=0.15
    )


def seeds_of(space: Space) -> list[Candidate]:
    """What OpenVINO's hints would answer, about."""
    cores, like = space.threads[-1], next(space.all())
    latency = replace(like, streams=1, threads=cores, requests=1, batch=1)
    throughput = replace(like, streams=cores, threads=cores, requests=cores, batch=space.batch[-1])
    return [space.clip(latency), space.clip(throughput)]


def goal_of(objective: str, surface: Surface) -> Goal:
    """One of :data:`OBJECTIVES`."""
    times = OBJECTIVES[objective]
    if not times:
        return Goal("throughput" if times is None else "latency")
    return Goal("throughput", times * surface.latency(surface.clamp(seeds_of(surface.space)[0])))


class Bench:
    """Measures a surface as a search says, and keeps the time and the ``looks``."""

    def __init__(self, surface: Surface, chance: Random) -> None:
        self.surface = surface
        self.spent = 0.0
        self.looks: list[tuple[Look, Measurement]] = []
        self._chance = chance
        self._compiled: set[CompileKey] = set()
        self._current: CompileKey | None = None

    def measure(self, look: Look) -> Measurement:
        """One look; an import costs half as much as a compile."""
        surface, asked, begun = self.surface, look.candidate, self.spent
        if asked.compile_key != self._current:
            self.spent += surface.compile / (2 if asked.compile_key in self._compiled else 1)
        self._current = asked.compile_key
        self._compiled.add(asked.compile_key)
        effective, windows, failure = surface.clamp(asked), list[MeasurementWindow](), None
        if surface.fails(asked):
            effective, failure = asked, "the device said no"
        else:
            self.spent += WARM_UP
            for _ in range(look.windows):
                windows.append(surface.window(effective, self.spent, self._chance))
                self.spent += WINDOW
        measurement = Measurement(asked, effective, tuple(windows), self.spent - begun, failure)
        self.looks.append((look, measurement))
        return measurement

    def run(self, search: Search) -> Outcome:
        """All of ``search``."""
        while isinstance(step := search.step(self.spent), Look):
            search.learn(self.measure(step))
        return step


def judge(surface: Surface, goal: Goal, winner: Candidate) -> tuple[float, float]:
    """How near ``winner`` truly is to the best (1: it is), and the part of its answers that is in time.

    The best is the best candidate that keeps the objective, or the one nearest to it if none does.
    """
    runnable = dict.fromkeys(surface.clamp(c) for c in surface.space.all() if not surface.fails(c))
    eligible = [c for c in runnable if surface.share(c, goal.latency) >= goal.percentile / 100]

    def worth(c: Candidate) -> float:
        if not eligible:
            return 1 / surface.tail(c, goal.percentile)
        if goal.kind == "latency":
            return 1 / surface.latency(c)
        return surface.runs(c) * c.batch * surface.share(c, goal.latency)

    in_time = surface.share(winner, goal.latency) if eligible else 1.0
    return worth(winner) / max(map(worth, eligible or runnable)), in_time
