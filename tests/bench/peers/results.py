"""What was measured, and what is concluded from it: ratios within rounds, their medians and spreads. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

INFERD, INFERD_MAPPED, ECHO, BENCHMARK_APP = "inferd", "inferd-mapped", "echo", "benchmark_app"
NO_PEERS = frozenset({INFERD, INFERD_MAPPED, ECHO, BENCHMARK_APP})
UNARY, STREAM, SHARED_MEMORY = "unary", "stream", "shared memory"
LOAD = 8
"""Requests in flight at which costs are compared: all cores are busy, and no line is long."""
OBJECTIVE_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class Result:
    """One closed loop: ``server`` asked by ``way`` for ``model``, ``concurrency`` requests in flight.

    ``throughput`` is answers a second; times are seconds, and None where nothing was answered or it is not known.
    ``server_cpu`` and ``client_cpu`` are CPU seconds an answer. ``foreign`` is how many CPUs neither of them used.
    ``errors`` counts what was not answered as wanted, ``error`` says what the first was.
    """

    round: int
    model: str
    server: str
    way: str
    concurrency: int
    throughput: float
    p50: float | None
    p99: float | None
    server_cpu: float | None
    client_cpu: float | None
    foreign: float
    errors: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over rounds, the least and the most."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None of nothing."""
        known = list(values)
        return cls(median(known), min(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class Subject:
    """A server asked in one way."""

    server: str
    way: str


@dataclass(frozen=True, slots=True)
class Bar:
    """What is promised: ``limit`` of ``figure``, a floor or a ceiling; None as the figure where it was not measured."""

    text: str
    limit: float
    floor: bool
    figure: Spread | None

    @property
    def met(self) -> bool | None:
        if self.figure is None:
            return None
        return self.figure.middle >= self.limit if self.floor else self.figure.middle <= self.limit


ByRound = dict[int, float]


class Results:
    """All of a run, asked by model, server and way. A figure by round leaves out the rounds that don't have it."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._all = tuple(results)

    def models(self) -> list[str]:
        return list(dict.fromkeys(r.model for r in self._all))

    def subjects(self, model: str) -> list[Subject]:
        """Who was asked for ``model``, in the order of the first round."""
        first = [r for r in self._all if r.model == model]
        return list(dict.fromkeys(Subject(r.server, r.way) for r in first))

    def levels(self, model: str, subject: Subject) -> list[int]:
        return sorted({r.concurrency for r in self._of(model, subject)})

    def foreign(self) -> Spread | None:
        return Spread.of(r.foreign for r in self._all)

    def errors(self, model: str, subject: Subject) -> tuple[int, str]:
        """How many, and what the first of them said."""
        found = [r for r in self._of(model, subject) if r.errors]
        return sum(r.errors for r in found), found[0].error if found else ""

    def at(self, model: str, subject: Subject, concurrency: int, value: Callable[[Result], float | None]) -> ByRound:
        """``value`` of each round at that concurrency."""
        found = {}
        for result in self._of(model, subject):
            if result.concurrency == concurrency and (known := value(result)) is not None:
                found[result.round] = known
        return found

    def best(self, model: str, subject: Subject) -> ByRound:
        """The most throughput at any concurrency."""
        found: ByRound = {}
        for result in self._of(model, subject):
            found[result.round] = max(found.get(result.round, 0.0), result.throughput)
        return found

    def served(self, model: str, subject: Subject) -> ByRound:
        """The most throughput at any concurrency, with what the client took of the same CPUs given back: what the
        server would answer if it had them to itself."""
        found: ByRound = {}
        for r in self._of(model, subject):
            part = (r.client_cpu or 0.0) / r.server_cpu if r.server_cpu else 0.0
            found[r.round] = max(found.get(r.round, 0.0), r.throughput * (1 + part))
        return found

    def cost(self, model: str, subject: Subject) -> ByRound:
        """CPU seconds of the server an answer, under load: benchmark_app's load is what its streams take."""
        levels = self.levels(model, subject)
        if not levels:
            return {}
        level = LOAD if LOAD in levels else levels[-1]
        return self.at(model, subject, level, lambda r: r.server_cpu)

    def alone(self, model: str, subject: Subject) -> ByRound:
        """The median latency of a request that is alone."""
        return self.at(model, subject, 1, lambda r: r.p50)

    def objective(self, model: str) -> float | None:
        """Seconds: three times the latency of a request alone at the peer that has the least, or at inferd."""
        peers = [s for s in self.subjects(model) if s.server not in NO_PEERS]
        candidates = peers or [Subject(INFERD, UNARY)]
        alone = [spread.middle for s in candidates if (spread := Spread.of(self.alone(model, s).values()))]
        return OBJECTIVE_FACTOR * min(alone) if alone else None

    def goodput(self, model: str, subject: Subject) -> ByRound:
        """The most throughput at a concurrency whose p99 keeps the objective, without an error; 0 where none does.

        Nothing for benchmark_app and the echo, which serve no model.
        """
        objective = self.objective(model)
        found: ByRound = {}
        for result in self._of(model, subject):
            if objective is None or subject.server in {BENCHMARK_APP, ECHO}:
                continue
            kept = result.p99 is not None and result.p99 <= objective and not result.errors
            found[result.round] = max(found.get(result.round, 0.0), result.throughput if kept else 0.0)
        return found

    def best_peer(self, model: str, value: Callable[[str, Subject], ByRound]) -> Subject | None:
        """The peer with the highest median of ``value``."""
        peers = [s for s in self.subjects(model) if s.server not in NO_PEERS]
        ranked = [(spread.middle, s) for s in peers if (spread := Spread.of(value(model, s).values()))]
        return max(ranked, key=lambda pair: pair[0])[1] if ranked else None

    def _of(self, model: str, subject: Subject) -> list[Result]:
        return [r for r in self._all if (r.model, r.server, r.way) == (model, subject.server, subject.way)]


def ratio(one: ByRound, other: ByRound) -> Spread | None:
    """``one`` in proportion to ``other``, of the rounds that have both and where ``other`` is not 0."""
    return Spread.of(one[number] / other[number] for number in one if other.get(number))


def difference(one: ByRound, other: ByRound) -> ByRound:
    """``one`` less ``other``, round by round."""
    return {number: one[number] - other[number] for number in one if number in other}


# -- what is promised -------------------------------------------------------------


def bars(results: Results, small: Sequence[str] = ("noop", "magika")) -> list[Bar]:
    """Every promise about the models that were measured."""
    found: list[Bar] = []
    unary, stream = Subject(INFERD, UNARY), Subject(INFERD, STREAM)
    reference, echo = Subject(BENCHMARK_APP, "async"), Subject(ECHO, UNARY)
    over = {
        "TCP": unary,
        "shared memory that is copied": Subject(INFERD, SHARED_MEMORY),
        "shared memory that is mapped": Subject(INFERD_MAPPED, SHARED_MEMORY),
    }

    def cost(model: str, subject: Subject) -> Spread | None:
        return ratio(results.cost(model, subject), results.cost(model, reference))

    for model in results.models():
        if model == "resnet50":
            for name, subject in over.items():
                limit = 0.90 if subject == unary else 0.95
                rate = ratio(results.served(model, subject), results.best(model, reference))
                text = f"{model}: throughput of benchmark_app's, the client's CPU given back, {name}"
                found.append(Bar(text, limit, True, rate))
            text = f"{model}: server CPU an inference of benchmark_app's, TCP"
            found.append(Bar(text, 1.10, False, cost(model, unary)))
        if model == "squeezenet":
            for name, subject in over.items():
                text = f"{model}: server CPU an inference of benchmark_app's, {name}"
                found.append(Bar(text, 1.35 if subject == unary else 1.10, False, cost(model, subject)))
        if model in small:
            found += _small(results, model, unary, stream, echo, reference)
        for way, subject in (("", unary), (" over a stream", stream)):
            later = difference(results.alone(model, subject), results.alone(model, reference))
            more = Spread.of(1000 * seconds for seconds in later.values())
            text = f"{model}: ms above benchmark_app's latency, one in flight{way}"
            found.append(Bar(text, 0.35, False, more))
        if peer := results.best_peer(model, results.goodput):
            times = ratio(results.goodput(model, unary), results.goodput(model, peer))
            text = f"{model}: throughput within the objective of the best peer's ({peer.server})"
            found.append(Bar(text, 3.0, True, times))
    return found


def _small(
    results: Results, model: str, unary: Subject, stream: Subject, echo: Subject, reference: Subject
) -> list[Bar]:
    costs, streamed = results.cost(model, unary), results.cost(model, stream)
    what = "server CPU an RPC"
    if model != "noop":
        # What remains is serving; the inference itself costs what it costs benchmark_app.
        computing = results.cost(model, reference)
        costs, streamed = difference(costs, computing), difference(streamed, computing)
        what += " less benchmark_app's an inference,"
    return [
        Bar(f"{model}: {what} of a bare echo's", 1.5, False, ratio(costs, results.cost(model, echo))),
        Bar(f"{model}: {what} streamed of unary", 0.6, False, ratio(streamed, costs)),
    ]
