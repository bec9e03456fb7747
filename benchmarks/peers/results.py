"""The measurements, and the conclusions from them: ratios within rounds, their medians and spreads. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

INFERD, INFERD_MAPPED, BENCHMARK_APP = "inferd", "inferd-mapped", "benchmark_app"
BENCHMARK_APP_DEFAULTS = "benchmark_app-defaults"
"""benchmark_app as a user starts it: its own streams, and bf16 on a CPU that has it."""
ECHO, COMPUTING_ECHO, FLOOR = "echo", "echo-computes", "floor"
NO_PEERS = frozenset({INFERD, INFERD_MAPPED, BENCHMARK_APP, BENCHMARK_APP_DEFAULTS, ECHO, COMPUTING_ECHO, FLOOR})
UNARY, STREAM, SHARED_MEMORY, STREAMED_SHARED_MEMORY = "unary", "stream", "shared memory", "stream, shared memory"
LOAD = 8
"""Requests in flight at which costs are compared: all cores are busy and queues are short."""
OBJECTIVE_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class Result:
    """One closed loop: ``server`` asked by ``way`` for ``model``, ``concurrency`` requests in flight.

    ``throughput`` is responses a second; times are seconds, and None without responses or if unknown. ``server_cpu``
    and ``client_cpu`` are CPU seconds a response. ``foreign`` is the number of CPUs that other processes used.
    ``errors`` counts requests without the expected response, ``error`` describes the first.

    ``serving_cpu`` is the part of ``server_cpu`` that did not compute: what all threads took but the busiest, of which
    as many as the server computes with, its main one not among them, are left out; none where nothing computes.
    OpenVINO's threads have no names, so that how busy they are is what tells them. It does where each computes for
    longer than any other thread serves. What they do besides computing counts as computing, and what a thread did that
    ended meanwhile is not known. None of benchmark_app, of peers, who may serve on any thread, of several processes
    that compute, and with fewer requests in flight than threads, as some would then be idle.
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
    serving_cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over rounds, the minimum and the maximum."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None without values."""
        known = list(values)
        return cls(median(known), min(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class Subject:
    """A server asked in one way."""

    server: str
    way: str


def computes(model: str) -> bool:
    """Whether ``model`` takes time on threads of its own: what computes next to nothing inferd runs where it serves."""
    return model != "noop"


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise: ``limit`` of ``figure``, a floor or a ceiling; the figure is None if it was not measured."""

    text: str
    limit: float
    floor: bool
    figure: Spread | None

    @property
    def met(self) -> bool | None:
        if self.figure is None:
            return None
        return self.figure.middle >= self.limit if self.floor else self.figure.middle <= self.limit


@dataclass(frozen=True, slots=True)
class Share:
    """Where the CPU and the latency of ``subject`` go, beyond what benchmark_app needs for ``model``.

    ``computing`` is CPU of computing threads an inference in proportion to all that benchmark_app takes, ``serving``
    that of all others in seconds, ``of_echo`` the same in proportion to the echo's that computes, asked over a stream
    or not as this one. ``later`` is how many seconds later than benchmark_app's a request alone is answered. None where
    it was not measured.
    """

    model: str
    subject: Subject
    computing: Spread | None
    serving: Spread | None
    of_echo: Spread | None
    later: Spread | None


ByRound = dict[int, float]


_REFERENCE = Subject(BENCHMARK_APP, "async")


class Results:
    """All results of a run, by model, server and way. A figure by round leaves out the rounds without it."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._all = tuple(results)

    def models(self) -> list[str]:
        return list(dict.fromkeys(r.model for r in self._all))

    def subjects(self, model: str) -> list[Subject]:
        """The subjects measured with ``model``, in the order of the first round."""
        first = [r for r in self._all if r.model == model]
        return list(dict.fromkeys(Subject(r.server, r.way) for r in first))

    def levels(self, model: str, subject: Subject) -> list[int]:
        return sorted({r.concurrency for r in self._of(model, subject)})

    def foreign(self) -> Spread | None:
        return Spread.of(r.foreign for r in self._all)

    def errors(self, model: str, subject: Subject) -> tuple[int, str]:
        """The number of errors, and the message of the first."""
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
        """The highest throughput at any concurrency."""
        found: ByRound = {}
        for result in self._of(model, subject):
            found[result.round] = max(found.get(result.round, 0.0), result.throughput)
        return found

    def served(self, model: str, subject: Subject) -> ByRound:
        """The highest throughput at any concurrency, plus the share of the client on the same CPUs: the server's
        throughput if it had them to itself."""
        found: ByRound = {}
        for r in self._of(model, subject):
            part = (r.client_cpu or 0.0) / r.server_cpu if r.server_cpu else 0.0
            found[r.round] = max(found.get(r.round, 0.0), r.throughput * (1 + part))
        return found

    def cost(self, model: str, subject: Subject) -> ByRound:
        """CPU seconds of the server a response, under load; for benchmark_app the load is one request a stream."""
        levels = self.levels(model, subject)
        if not levels:
            return {}
        level = LOAD if LOAD in levels else levels[-1]
        return self.at(model, subject, level, lambda r: r.server_cpu)

    def serving(self, model: str, subject: Subject) -> ByRound:
        """The part of :meth:`cost` that serving threads took, if known."""
        return self.at(model, subject, LOAD, lambda r: r.serving_cpu)

    def computing(self, model: str, subject: Subject) -> ByRound:
        """The rest of it."""
        return difference(self.cost(model, subject), self.serving(model, subject))

    def later(self, model: str, subject: Subject) -> ByRound:
        """Seconds that a request alone takes longer than in benchmark_app."""
        return difference(self.alone(model, subject), self.alone(model, _REFERENCE))

    def alone(self, model: str, subject: Subject) -> ByRound:
        """The median latency of a request alone."""
        return self.at(model, subject, 1, lambda r: r.p50)

    def objective(self, model: str) -> float | None:
        """Seconds: three times the latency of a request alone at the fastest peer, or at inferd."""
        peers = [s for s in self.subjects(model) if s.server not in NO_PEERS]
        candidates = peers or [Subject(INFERD, UNARY)]
        alone = [spread.middle for s in candidates if (spread := Spread.of(self.alone(model, s).values()))]
        return OBJECTIVE_FACTOR * min(alone) if alone else None

    def goodput(self, model: str, subject: Subject) -> ByRound:
        """The highest throughput at a concurrency without errors whose p99 keeps the objective; 0 where none does.

        Nothing for benchmark_app and the bare echo, which serve no model.
        """
        objective = self.objective(model)
        found: ByRound = {}
        for result in self._of(model, subject):
            if objective is None or subject.server in {BENCHMARK_APP, BENCHMARK_APP_DEFAULTS, ECHO}:
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
    """``one`` over ``other``, in the rounds that have both and where ``other`` is not 0."""
    return Spread.of(one[number] / other[number] for number in one if other.get(number))


def difference(one: ByRound, other: ByRound) -> ByRound:
    """``one`` minus ``other``, round by round."""
    return {number: one[number] - other[number] for number in one if number in other}


# -- the promises -----------------------------------------------------------------


def bars(results: Results, small: Sequence[str] = ("noop", "magika")) -> list[Bar]:
    """Every promise about the models that were measured."""
    found: list[Bar] = []
    unary, stream = Subject(INFERD, UNARY), Subject(INFERD, STREAM)
    mapped_stream = Subject(INFERD_MAPPED, STREAMED_SHARED_MEMORY)
    reference, echo = _REFERENCE, Subject(ECHO, UNARY)
    over = {
        "TCP": unary,
        "copied shared memory": Subject(INFERD, SHARED_MEMORY),
        "mapped shared memory": Subject(INFERD_MAPPED, SHARED_MEMORY),
        "mapped shared memory, over a stream": mapped_stream,
    }

    def cost(model: str, subject: Subject) -> Spread | None:
        return ratio(results.cost(model, subject), results.cost(model, reference))

    for model in results.models():
        if model == "resnet50":
            for name, subject in over.items():
                limit = 0.90 if subject == unary else 0.95
                rate = ratio(results.served(model, subject), results.best(model, reference))
                text = f"{model}: throughput relative to benchmark_app, the client's CPU given back, {name}"
                found.append(Bar(text, limit, True, rate))
            text = f"{model}: server CPU an inference relative to benchmark_app, TCP"
            found.append(Bar(text, 1.10, False, cost(model, unary)))
        if model == "squeezenet":
            for name, subject in over.items():
                text, limit = f"{model}: server CPU an inference relative to", 1.35 if subject == unary else 1.10
                found.append(Bar(f"{text} benchmark_app, {name}", limit, False, cost(model, subject)))
                # The same within one loop: what else the machine does between two changes it by more than serving does.
                own = ratio(results.cost(model, subject), results.computing(model, subject))
                found.append(Bar(f"{text} its own computing threads, {name}", limit, False, own))
        if model in small:
            found += _small(results, model, unary, stream, echo, reference)
        latencies = {"": unary, " over a stream": stream, " over a stream, shared memory": mapped_stream}
        for way, subject in latencies.items():
            more = Spread.of(1000 * seconds for seconds in results.later(model, subject).values())
            text = f"{model}: ms above benchmark_app's latency, one in flight{way}"
            found.append(Bar(text, 0.35, False, more))
        if peer := results.best_peer(model, results.goodput):
            times = ratio(results.goodput(model, unary), results.goodput(model, peer))
            text = f"{model}: throughput within the objective, relative to the best peer ({peer.server})"
            found.append(Bar(text, 3.0, True, times))
    return found


def _small(
    results: Results, model: str, unary: Subject, stream: Subject, echo: Subject, reference: Subject
) -> list[Bar]:
    costs, streamed = results.cost(model, unary), results.cost(model, stream)
    what = "server CPU an RPC"
    if computes(model):
        # The rest is serving; the inference itself costs what it costs benchmark_app.
        computing = results.cost(model, reference)
        costs, streamed = difference(costs, computing), difference(streamed, computing)
        what += " minus benchmark_app's an inference"
    found = [
        Bar(f"{model}: {what}, relative to a bare echo", 1.5, False, ratio(costs, results.cost(model, echo))),
        Bar(f"{model}: {what}, stream relative to unary", 0.6, False, ratio(streamed, costs)),
    ]
    if computes(model):
        # The same without a difference of two large numbers.
        serving, what = results.serving(model, unary), "CPU of serving threads an RPC"
        of_echo = ratio(serving, results.serving(model, Subject(COMPUTING_ECHO, UNARY)))
        of_unary = ratio(results.serving(model, stream), serving)
        found.append(Bar(f"{model}: {what}, relative to the computing echo", 1.5, False, of_echo))
        found.append(Bar(f"{model}: {what}, stream relative to unary", 0.6, False, of_unary))
    return found


# -- where it goes ----------------------------------------------------------------


def shares(results: Results) -> list[Share]:
    """For each model that computes, those whose threads were told apart under load, in the order of the first round."""
    return [
        _share(results, model, subject)
        for model in filter(computes, results.models())
        for subject in results.subjects(model)
        if subject.server != ECHO and results.serving(model, subject)
    ]


def _share(results: Results, model: str, subject: Subject) -> Share:
    serving = results.serving(model, subject)
    echo = Subject(COMPUTING_ECHO, STREAM if subject.way in {STREAM, STREAMED_SHARED_MEMORY} else UNARY)
    return Share(
        model,
        subject,
        ratio(results.computing(model, subject), results.cost(model, _REFERENCE)),
        Spread.of(serving.values()),
        ratio(serving, results.serving(model, echo)),
        Spread.of(results.later(model, subject).values()),
    )
