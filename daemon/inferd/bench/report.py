"""The results of a run, and the document that stores them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from inferd.bench.latencies import Latencies
from inferd.bench.load import Closed, Load, Open
from inferd.bench.server_side import ServerSide
from inferd.bench.tally import LoadWindow

FORMAT = 1
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
# When a client process is busy for a larger share of a window, the figures describe the client.
_SATURATED = 0.9
# The lag of the latest hundredth of requests, relative to the median latency, that deserves a warning.
_LATE = 0.5


@dataclass(frozen=True, slots=True)
class LatencyObjective:
    """``percentile`` % of responses must come within ``latency`` seconds."""

    latency: float
    percentile: float

    def describe(self) -> str:
        return f"{self.percentile:g} % within {self.latency * 1000:g} ms"


@dataclass(frozen=True, slots=True)
class Step:
    """One load, the window in which it was measured, and the server meanwhile; ``objective`` is the run's."""

    load: Load
    window: LoadWindow
    server: ServerSide
    objective: LatencyObjective | None

    @property
    def met(self) -> bool | None:
        """Whether the objective was met, counting all requests that were due; None without one."""
        if self.objective is None:
            return None
        return 100 * self.window.share_in_time >= self.objective.percentile and self.window.due > 0

    @property
    def in_flight(self) -> float | None:
        """Requests in flight on average, by Little's law."""
        mean = self.window.latencies.mean
        return None if mean is None else mean * self.window.throughput

    @property
    def memory(self) -> float | None:
        """Bytes by which the server grew since before the first load, for each request in flight; not below 0."""
        if self.server.rss_growth is None or not self.in_flight:
            return None
        return max(0, self.server.rss_growth) / self.in_flight

    def warnings(self) -> list[str]:
        """Why the figures may describe the client rather than the server, in sentences."""
        found = []
        window = self.window
        if window.busiest > _SATURATED * window.seconds:
            found.append(
                f"{self.load.describe()}: a client process was busy for {window.busiest / window.seconds:.0%} of the "
                "time, so the client may be the bottleneck: give it more --processes"
            )
        late, (median, tail) = window.lags.quantile(99), window.latencies.quantiles((50, 99))
        if late is not None and median is not None and tail is not None and late > max(_LATE * median, 0.001):
            found.append(
                f"{self.load.describe()}: requests left up to {late * 1000:.3g} ms late (p99), which counts as latency"
            )
        return found


@dataclass(frozen=True, slots=True)
class BenchRun:
    """A whole run. ``server`` and ``model`` are named as the server names them, ``way`` says how requests were sent,
    ``inputs`` describes them. An ``interrupted`` run has fewer steps, the last of them shorter."""

    server: str
    model: str
    version: str
    way: str
    inputs: str
    processes: int
    objective: LatencyObjective | None
    steps: tuple[Step, ...]
    interrupted: bool = False

    @property
    def title(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.model}{version} on {self.server}, {self.way}"


# -- the document -----------------------------------------------------------------


def document(run: BenchRun) -> dict[str, Any]:
    """``run`` as JSON: seconds, bytes and counts; derived figures are included for readers."""
    return {
        "inferd_bench": FORMAT,
        "server": run.server,
        "model": run.model,
        "version": run.version,
        "way": run.way,
        "inputs": run.inputs,
        "processes": run.processes,
        "objective": None if run.objective is None else asdict(run.objective),
        "interrupted": run.interrupted,
        "steps": [_step(s) for s in run.steps],
    }


def run_of(read: Any) -> BenchRun:
    """The run in a document. Raises ValueError with a sentence if it is not one."""
    if not isinstance(read, dict) or read.get("inferd_bench") != FORMAT:
        raise ValueError("not written by inferd bench, or by another version of it")
    try:
        objective = None if read["objective"] is None else LatencyObjective(**read["objective"])
        return BenchRun(
            read["server"],
            read["model"],
            read["version"],
            read["way"],
            read["inputs"],
            read["processes"],
            objective,
            tuple(_step_of(s, objective) for s in read["steps"]),
            read["interrupted"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a complete document of inferd bench: {error}") from None


def _step(step: Step) -> dict[str, Any]:
    window = step.window
    quantiles = window.latencies.quantiles(PERCENTILES)
    return {
        "load": {"kind": "closed" if isinstance(step.load, Closed) else "open", **asdict(step.load)},
        "seconds": window.seconds,
        "due": window.due,
        "throughput": window.throughput,
        "goodput": None if step.objective is None else window.goodput,
        "share_in_time": None if step.objective is None else window.share_in_time,
        "met": step.met,
        "errors": window.errors,
        "latency": {
            "mean": window.latencies.mean,
            **{f"p{p:g}": value for p, value in zip(PERCENTILES, quantiles, strict=True)},
            "max": window.latencies.worst,
        },
        "server": asdict(step.server),
        "memory_a_request_in_flight": step.memory,
        "client_cpu_a_request": window.cpu / window.answered if window.answered else None,
        "window": asdict(window),
    }


def _step_of(read: Mapping[str, Any], objective: LatencyObjective | None) -> Step:
    load = dict(read["load"])
    kind = {"closed": Closed, "open": Open}[load.pop("kind")]
    window = dict(read["window"])
    latencies, lags = Latencies(**window.pop("latencies")), Latencies(**window.pop("lags"))
    return Step(
        kind(**load), LoadWindow(latencies=latencies, lags=lags, **window), ServerSide(**read["server"]), objective
    )
