"""The rounds: every server with every model for a few seconds each, while the other servers are idle or paused."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import grpc
import numpy as np

from benchmarks.open_loop import quantile
from benchmarks.peers import benchmark_app, clients
from benchmarks.peers.environments import NotInstalled
from benchmarks.peers.processes import (
    Threads,
    cpu_seconds,
    machine_cpu_seconds,
    serving_cpu_seconds,
    thread_cpu_seconds,
)
from benchmarks.peers.results import (
    BENCHMARK_APP,
    BENCHMARK_APP_DEFAULTS,
    COMPUTING_ECHO,
    ECHO,
    INFERD,
    LOAD,
    STREAMED_SHARED_MEMORY,
    Result,
    computes,
)
from benchmarks.peers.servers import Budget, Kind, NotStarted, Running, Way
from benchmarks.peers.workloads import Workload

LADDER = (1, 4, 8, 16, 32)
"""Requests in flight where a server is compared; at the first way of each server."""
FEW = (1, 8, 32)
"""At its other ways, and at the bare echo."""
LEAST = (1, LOAD)
"""At servers that only show where CPU and latency go."""

_READY_PATIENCE, _BETWEEN = 60.0, 0.5
_T = TypeVar("_T")


class WrongAnswer(Exception):
    """A server whose response differs from OpenVINO's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The seconds of each closed loop and of the warm-up before it, and the number of rounds."""

    rounds: int
    seconds: float
    warm_up: float
    with_benchmark_app: bool


class Rounds:
    """The servers, started and paused, and their measurements. ``started`` are those that answer right."""

    def __init__(
        self, loop: asyncio.Runner, budget: Budget, workloads: Sequence[Workload], report: Callable[[str], None]
    ) -> None:
        self._loop, self._budget, self._workloads, self._report = loop, budget, workloads, report
        self.started: list[Running] = []
        self.missing: dict[str, str] = {}
        self.configurations: dict[str, str] = {}

    def start(self, kinds: Sequence[Kind], stack: ExitStack) -> None:
        """Start each, check its responses, pause it where it halts.

        Servers that fail are in :attr:`missing`, with the reason.
        """
        for kind in kinds:
            begun = time.monotonic()
            with ExitStack() as own:
                try:
                    running = kind.start(kind, self._budget, self._workloads, own)
                    ways = self._verify(running)
                except (NotInstalled, NotStarted, WrongAnswer, AssertionError) as problem:
                    self.missing[kind.title] = str(problem).strip().splitlines()[0]
                    self._report(f"{kind.title} is left out: {problem}")
                    continue
                stack.push(own.pop_all())
            took, memory = time.monotonic() - begun, running.family.memory() >> 20
            if running.configuration:
                self.configurations[kind.title] = running.configuration
            if kind.halts:
                running.family.halt()
            self.started.append(running)
            self._report(
                f"{kind.title} {kind.version} answers right ({', '.join(ways)}) after {took:.0f} s, {memory} MiB"
            )

    def measure(self, plan: Plan) -> list[Result]:
        """All rounds. The first server changes from round to round."""
        found: list[Result] = []
        for number in range(plan.rounds):
            for workload in _turned(self._workloads, number):
                visits: list[Running | None] = [*self.started, *([None] if plan.with_benchmark_app else [])]
                for running in _turned(visits, number):
                    if running is None:
                        found += self._benchmark_app(number, workload, plan)
                    elif workload.name in running.targets:
                        found += self._visit(number, running, workload, plan)
        return found

    # -- one visit --------------------------------------------------------------

    def _visit(self, number: int, running: Running, workload: Workload, plan: Plan) -> list[Result]:
        found = []
        running.family.go_on()
        pids = running.family.members()
        if not pids:
            self.missing[running.kind.title] = f"it ended before round {number + 1}, {workload.name}"
            self._report(f"{running.kind.title} has ended\n{running.log()}")
            return []
        try:
            for way in running.kind.ways:
                if (running.kind.title + ", " + way.name) in self.missing:
                    continue
                for concurrency in _levels(running.kind, way):
                    looking = self._look(number, running, way, workload, concurrency, pids, plan)
                    found.append(self._loop.run(looking))
                    self._say(plan, found[-1])
        finally:
            if running.kind.halts:
                running.family.halt()
        return found

    async def _look(
        self,
        number: int,
        running: Running,
        way: Way,
        workload: Workload,
        concurrency: int,
        pids: list[int],
        plan: Plan,
    ) -> Result:
        edges: list[tuple[float, float, float]] = []
        threads: list[Threads] = []
        computing = self._computing(running.kind, workload, concurrency, pids)

        def at_edge() -> None:
            edges.append((cpu_seconds(pids), time.process_time(), machine_cpu_seconds()))
            if computing is not None:
                threads.append(thread_cpu_seconds(pids))

        heard = clients.Heard(seconds=plan.seconds)
        problem = ""
        try:
            async with way.lanes(running.targets[workload.name], workload, concurrency) as lanes:
                heard = await clients.closed_loop(lanes, plan.warm_up, plan.seconds * workload.pace, at_edge)
        except (TimeoutError, OSError, grpc.RpcError) as error:
            problem = clients.in_words(error)
        server, client, machine = (
            (after - before for before, after in zip(*edges, strict=True)) if len(edges) == 2 else (0.0, 0.0, 0.0)
        )
        serving = None
        if computing is not None and len(threads) == 2:
            before, after = threads
            serving = serving_cpu_seconds(before, after, computing)
        return Result(
            round=number,
            model=workload.name,
            server=running.kind.name,
            way=way.name,
            concurrency=concurrency,
            throughput=heard.rate,
            p50=quantile(heard.latencies, 0.5),
            p99=quantile(heard.latencies, 0.99),
            server_cpu=server / heard.seconds / heard.rate if heard.rate else None,
            client_cpu=client / heard.seconds / heard.rate if heard.rate else None,
            foreign=max(0.0, (machine - server - client) / heard.seconds),
            errors=len(heard.errors) + bool(problem),
            error=(heard.errors or [problem])[0],
            serving_cpu=serving / heard.seconds / heard.rate if serving is not None and heard.rate else None,
        )

    def _computing(self, kind: Kind, workload: Workload, concurrency: int, pids: Sequence[int]) -> int | None:
        """The number of the server's threads that compute, None where they cannot be told from the others."""
        if kind.peer:
            return None
        if kind.name == ECHO or not computes(workload.name):
            return 0
        return self._budget.threads if len(pids) == 1 and concurrency >= self._budget.threads else None

    def _benchmark_app(self, number: int, workload: Workload, plan: Plan) -> list[Result]:
        found = []
        for defaults, alone in product((False, True), (True, False)):
            try:
                seconds = plan.seconds * workload.pace
                result = benchmark_app.run(number, workload, self._budget.threads, alone, seconds, defaults)
            except RuntimeError as problem:
                self.missing[BENCHMARK_APP_DEFAULTS if defaults else BENCHMARK_APP] = str(problem).splitlines()[0]
                self._report(str(problem))
                continue
            found.append(result)
            self._say(plan, result)
        return found

    # -- before the first round -------------------------------------------------

    def _verify(self, running: Running) -> list[str]:
        """The ways in which it gives OpenVINO's output; the others are in :attr:`missing`."""
        right = []
        for way in running.kind.ways:
            try:
                for workload in self._workloads:
                    if workload.name in running.targets:
                        self._loop.run(self._once_it_answers(running, way, workload))
            except grpc.aio.AioRpcError as error:
                if way is running.kind.ways[0]:
                    raise NotStarted(f"{clients.in_words(error)}\n{running.log()}") from None
                self.missing[f"{running.kind.title}, {way.name}"] = f"{error.code().name}: {error.details()}"
            else:
                right.append(way.name)
        return right

    async def _once_it_answers(self, running: Running, way: Way, workload: Workload) -> None:
        given_up = time.monotonic() + _READY_PATIENCE
        while True:
            # An open port does not mean that the model is loaded.
            try:
                async with way.lanes(running.targets[workload.name], workload, 1) as lanes:
                    data = await lanes[0]()
            except (OSError, clients.Refused, TimeoutError, grpc.aio.AioRpcError) as error:
                if not running.family.members() or time.monotonic() > given_up:
                    problem = clients.in_words(error)
                    raise NotStarted(f"does not answer {workload.name}: {problem}\n{running.log()}") from None
                if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise
            else:
                self._compare(running, way, workload, data)
                return
            await asyncio.sleep(_BETWEEN)

    def _compare(self, running: Running, way: Way, workload: Workload, data: bytes) -> None:
        if running.kind.name == ECHO:
            return
        got = way.read(data)
        wanted = workload.answer.ravel()
        if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=1e-3, atol=1e-5):
            raise WrongAnswer(f"{running.kind.title} answers {workload.name} by {way.name} with {got[:4]}...")

    def _say(self, plan: Plan, result: Result) -> None:
        r = result
        cost = f"{r.server_cpu * 1e6:8.0f} us" if r.server_cpu is not None else "        -"
        cost += f" ({r.serving_cpu * 1e6:.0f} serving)" if r.serving_cpu is not None else ""
        p50, p99 = (f"{value * 1e3:.2f}" if value is not None else "-" for value in (r.p50, r.p99))
        self._report(
            f"round {r.round + 1}/{plan.rounds}  {r.model:10} {r.server:13} {r.way:21} {r.concurrency:3} in flight "
            f"{r.throughput:8.1f}/s  p50 {p50:>7} ms  p99 {p99:>7} ms  server {cost}  other CPU {r.foreign:.2f}"
            + (f"  {r.errors} errors: {r.error}" if r.errors else "")
        )


def _levels(kind: Kind, way: Way) -> tuple[int, ...]:
    if way is kind.ways[0] and (kind.peer or kind.name == INFERD):
        return LADDER
    return LEAST if kind.name == COMPUTING_ECHO or way.name == STREAMED_SHARED_MEMORY else FEW


def _turned(items: Sequence[_T], by: int) -> list[_T]:
    """``items`` from the ``by``-th on, then the ones before it."""
    by %= len(items)
    return [*items[by:], *items[:by]]
