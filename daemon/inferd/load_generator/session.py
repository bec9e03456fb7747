"""A run: one load after another, each by all client processes at once, with a server sample before and after."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Any, Protocol

from inferd.bench import messages
from inferd.bench.inputs import Feed
from inferd.bench.load import Closed, Load
from inferd.bench.report import BenchRun, LatencyObjective, Step
from inferd.bench.server_side import Resources, Sample, during
from inferd.bench.tally import LoadWindow
from inferd.load_generator.client_process import Begin, ClientProcess, ClientSpec, Ready, Stop, Task, Tick
from inferd.load_generator.server_probe import ServerProbe
from inferd.load_generator.shared_regions import shared
from inferd.rpc.client import InferenceClient
from inferd.security.client_credentials import ClientCredentials

# Between telling the processes when to begin, and that moment.
_AHEAD = 0.1
_PATIENCE = 10.0
_INTERRUPTED_PATIENCE = 1.0
# Requests with places of their own in an open loop, where the number in flight is unknown.
_OPEN_SLOTS = 64
_NEVER = 3600.0


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to request from ``target``, HOST:PORT, and how. Each of ``processes`` has ``connections``.

    ``deadline``, ``warm_up`` and ``seconds`` are in seconds; the latter two apply to each load.
    """

    target: str
    model: str
    version: str
    loads: tuple[Load, ...]
    stream: bool
    shared_memory: bool
    processes: int
    connections: int
    warm_up: float
    seconds: float
    objective: LatencyObjective | None
    deadline: float | None
    seed: int
    credentials: ClientCredentials

    @property
    def way(self) -> str:
        """In words."""
        ways = ["stream" if self.stream else "unary", *(["shared memory"] if self.shared_memory else [])]
        return ", ".join(ways)


class ProgressDisplay(Protocol):
    """Shows progress."""

    def begin(self, run: BenchRun, load: Load) -> None:
        """The next step is ``load``; ``run`` has the results so far."""

    def tick(self, elapsed: float, succeeded: int, failed: int) -> None:
        """``elapsed`` seconds after the step began, with the responses so far."""


def measure(
    plan: BenchPlan,
    inference_client: InferenceClient,
    probe: ServerProbe,
    feeds: Sequence[Feed],
    display: ProgressDisplay,
) -> BenchRun:
    """The run of ``plan``, or the part of it before a KeyboardInterrupt.

    Raises CallFailed if a first request fails, ClientFailed, SharedMemoryTooSmall and NoResourceUsage.
    """
    first = inference_client.ask(messages.request(plan.model, plan.version, feeds))
    server = inference_client.server_metadata()
    run = BenchRun(
        f"{server.name} {server.version}",
        plan.model,
        plan.version or first.model_version,
        plan.way,
        ", ".join(feed.describe() for feed in feeds),
        plan.processes,
        plan.objective,
        (),
    )
    with ExitStack() as stack:
        requests = stack.enter_context(_requests(plan, inference_client, feeds, first))
        try:
            idle = probe.resources()
            processes = [
                stack.enter_context(ClientProcess(_client(plan, requests, part))) for part in range(plan.processes)
            ]
            for place, load in enumerate(plan.loads):
                display.begin(run, load)
                step, interrupted = _StepRun(
                    plan, load, seed=plan.seed + place, processes=processes, probe=probe, idle=idle, display=display
                ).run()
                run = replace(run, steps=(*run.steps, *([step] if step is not None else [])), interrupted=interrupted)
                if interrupted:
                    break
        except KeyboardInterrupt:
            return replace(run, interrupted=True)
    return run


@contextmanager
def _requests(
    plan: BenchPlan, inference_client: InferenceClient, feeds: Sequence[Feed], first: Any
) -> Iterator[tuple[bytes, ...]]:
    if not plan.shared_memory:
        yield (messages.request(plan.model, plan.version, feeds).SerializeToString(),)
        return
    # Metadata may leave an output's size open; the first response does not.
    outputs = [(o.name, len(raw)) for o, raw in zip(first.outputs, first.raw_output_contents, strict=True)]
    most = max(load.concurrency if isinstance(load, Closed) else _OPEN_SLOTS for load in plan.loads)
    with shared(inference_client, plan.model, plan.version, feeds, outputs, max(most, plan.processes)) as requests:
        # An error that every client would get is raised here once, as one sentence.
        inference_client.ask(requests[0])
        yield tuple(request.SerializeToString() for request in requests)


def _client(plan: BenchPlan, requests: tuple[bytes, ...], part: int) -> ClientSpec:
    # Each of several requests has places of its own: no two processes share one.
    own = requests[part :: plan.processes] if len(requests) > 1 else requests
    return ClientSpec(
        plan.target, plan.connections, plan.stream, plan.deadline, plan.credentials, own, part, plan.processes
    )


class _StepRun:
    """One load."""

    def __init__(
        self,
        plan: BenchPlan,
        load: Load,
        *,
        seed: int,
        processes: list[ClientProcess],
        probe: ServerProbe,
        idle: Resources | None,
        display: ProgressDisplay,
    ) -> None:
        self._plan, self._load, self._seed = plan, load, seed
        self._processes, self._probe, self._idle, self._display = processes, probe, idle, display
        self._windows: dict[ClientProcess, LoadWindow] = {}
        self._ticks: dict[ClientProcess, Tick] = {}
        self._samples: list[tuple[float, Sample]] = []

    def run(self) -> tuple[Step | None, bool]:
        """The step's results, None if there are none, and whether it was interrupted."""
        plan = self._plan
        latency = plan.objective.latency if plan.objective is not None else _NEVER
        task = Task(self._load, plan.warm_up, plan.seconds, latency, _PATIENCE, self._seed)
        for process in self._processes:
            process.tell(task)
        for process in self._processes:
            while not isinstance(process.hear(), Ready):
                pass
        begins = time.monotonic() + _AHEAD
        for process in self._processes:
            process.tell(Begin(round(begins * 1e9)))
        opens = begins + plan.warm_up
        interrupted = False
        while len(self._windows) < len(self._processes):
            try:
                self._listen(begins, opens, opens + plan.seconds)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                for process in self._processes:
                    process.tell(Stop(_INTERRUPTED_PATIENCE))
                # If the window was open, it closes now.
                self._sample(len(self._samples) == 1)
        return self._seen(), interrupted

    def _listen(self, begins: float, opens: float, closes: float) -> None:
        """Process messages from the processes until the next sample of the server is due, and take it."""
        moments = (opens, closes)[len(self._samples) :]
        left = [p for p in self._processes if p not in self._windows]
        patience = max(0.0, moments[0] - time.monotonic()) if moments else None
        said = wait([p.connection for p in left], patience)
        for process in left:
            if process.connection in said:
                match process.hear():
                    case LoadWindow() as window:
                        self._windows[process] = window
                    case Tick() as tick:
                        self._ticks[process] = tick
        self._sample(bool(moments) and time.monotonic() >= moments[0])
        self._display.tick(
            time.monotonic() - begins,
            sum(t.succeeded for t in self._ticks.values()),
            sum(t.failed for t in self._ticks.values()),
        )

    def _sample(self, due: bool) -> None:
        if due:
            self._samples.append((time.monotonic(), self._probe.sample()))

    def _seen(self) -> Step | None:
        window = LoadWindow.merged(list(self._windows.values()))
        # Interrupted before there were results.
        if window.seconds <= 0:
            return None
        # Delayed for longer than the window, there was no time for a sample.
        while len(self._samples) < 2:
            self._sample(True)
        (began, before), (ended, after) = self._samples
        return Step(
            self._load, window, during(before, after, ended - began, window.answered, self._idle), self._plan.objective
        )
