"""Measures how well the daemon knows how long calls waited before it saw them, and what that knowledge costs.

    python -m benchmarks.accept_wait --out build/bench

One daemon serves a model of some milliseconds, with messages of 20 KB. Clients offer multiples of its capacity.
Meanwhile another process makes small calls that carry the time at which they were sent, and a wrapper of the daemon
records when it sees them (arrival_times.py). The wait between the two is compared with the daemon's own estimate for
the same calls and with its histogram. The cost is the CPU time of an idle server with probes and without, in turns.

Prints the comparison and writes accept_wait.json to ``--out``. It has no bars: the effect of a flood depends on the
machine.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import uvloop
from tests import models
from tests.system.daemon import Daemon
from tests.system.series import Series, scrape

from benchmarks.arrival_times import STAMPED
from benchmarks.closed_loop import capacity
from benchmarks.deadlines import work
from benchmarks.open_loop import METHOD, poisson, quantile
from benchmarks.overload import request_for
from inferd._pb import open_inference_pb2 as pb
from inferd.rpc.accept_wait_probe import AcceptWaitProbe
from inferd.scheduling.accept_wait import AcceptWait
from inferd.transport.event_loop import QueueEventLoop
from inferd.transport.http2 import Http2Connection, call_headers
from inferd.transport.server import GrpcServer

LOADS = (0.5, 1.0, 2.0, 4.0)
"""Multiples of the capacity."""
BETWEEN = 0.05
"""Seconds between two calls that carry their send time."""
SETTLE = 1.0
"""Seconds of each run that are left out at its start."""
WORK = "work"
SECONDS = "inferd_accept_wait_seconds"


@dataclass(frozen=True, slots=True)
class Level:
    """One load: milliseconds that calls waited and that the daemon estimated; ``probes`` are its own, by bucket."""

    load: float
    offered: float
    calls: int
    waited_p50: float | None
    waited_p99: float | None
    believed_p50: float | None
    believed_p99: float | None
    off_p50: float | None
    """Of what was believed less what was."""
    off_p10: float | None
    off_p90: float | None
    probes: int
    probes_mean: float | None


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    with asyncio.Runner(loop_factory=QueueEventLoop) as runner:
        cost = runner.run(_cost(options.seconds))
    print(f"a probe costs {cost['us_a_probe']:.0f} us of CPU on a server that does nothing else", flush=True)
    levels = _levels(options.seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"seconds": options.seconds, "cost": cost, "levels": [asdict(level) for level in levels]}
    (options.out / "accept_wait.json").write_text(json.dumps(report, indent=2) + "\n")
    _print(levels)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accept_wait", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


# -- what is known ----------------------------------------------------------------


def _levels(seconds: float) -> list[Level]:
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        folder = Path(scratch)
        models.save(work(), folder / "models", WORK)
        noting = folder / "noted.json"
        under = (sys.executable, "-m", "benchmarks.arrival_times", str(noting))
        spans: list[tuple[float, float, int, int, Series, Series]] = []
        with Daemon(folder / "models", "--cache-dir", str(folder / "cache"), under=under) as daemon:
            request = request_for(daemon.grpc, WORK)
            rate = uvloop.run(capacity(daemon.grpc, request, 8, seconds / 2))
            print(f"capacity {rate:.0f}/s", flush=True)
            for number, load in enumerate(LOADS):
                with _Stamped(daemon.grpc):
                    before, began = scrape(daemon), time.monotonic_ns()
                    uvloop.run(poisson(daemon.grpc, request, load * rate, SETTLE + seconds, number, patience=60.0))
                spans.append((load, load * rate, began, time.monotonic_ns(), before, scrape(daemon)))
            daemon.stop()
        noted: list[tuple[int, int, int]] = json.loads(noting.read_text())
    return [_level(*span, noted, seconds) for span in spans]


def _level(
    load: float,
    offered: float,
    began: int,
    ended: int,
    before: Series,
    after: Series,
    noted: Sequence[tuple[int, int, int]],
    seconds: float,
) -> Level:
    opens = began + SETTLE * 1e9
    of_it = [(seen - sent, believed) for sent, seen, believed in noted if opens <= sent < opens + seconds * 1e9]
    assert all(sent <= ended for sent, *_ in noted if sent < opens)
    probes = after.total(f"{SECONDS}_count") - before.total(f"{SECONDS}_count")
    total = after.total(f"{SECONDS}_sum") - before.total(f"{SECONDS}_sum")
    off = [believed - waited for waited, believed in of_it]
    return Level(
        load,
        offered,
        len(of_it),
        *(_ms([waited for waited, _ in of_it], share) for share in (0.5, 0.99)),
        *(_ms([believed for _, believed in of_it], share) for share in (0.5, 0.99)),
        *(_ms(off, share) for share in (0.5, 0.1, 0.9)),
        int(probes),
        total / probes * 1e3 if probes else None,
    )


def _ms(ns: Sequence[int], share: float) -> float | None:
    found = quantile(ns, share)
    return None if found is None else found / 1e6


class _Stamped:
    """Sends calls that carry their send time, from a process of its own, while the context is open."""

    def __init__(self, target: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._ready, self._over = context.Event(), context.Event()
        self._process = context.Process(target=_send_stamped, args=(target, self._ready, self._over))

    def __enter__(self) -> None:
        self._process.start()
        if not self._ready.wait(60.0):
            raise TimeoutError("the calls that say when they were sent did not begin")

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._process.join()


def _send_stamped(target: str, ready: Event, over: Event) -> None:
    # No model has this name: the daemon refuses such a call as soon as it sees it.
    host, _, port = target.rpartition(":")
    connection, headers = Http2Connection((host, int(port)), socket.AF_INET), call_headers(METHOD)
    # Otherwise a call would wait until the server acknowledges the bytes before it.
    connection._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ready.set()
    while not over.wait(BETWEEN):
        connection.read()
        message = pb.ModelInferRequest(model_name="none", id=f"{STAMPED}{time.monotonic_ns()}")
        connection.call(headers, message.SerializeToString())
    connection.close()


# -- what it costs ----------------------------------------------------------------


class _Probing(AcceptWait):
    """As many probes as there may be, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False

    @property
    def pause(self) -> int:
        return 100_000_000

    def wanted(self, now: int, *, busy: bool) -> bool:  # noqa: ARG002
        return self.on


async def _cost(seconds: float, turns: int = 6) -> dict[str, Any]:
    """Microseconds of CPU a probe: medians over turns with and without."""
    wait = _Probing()
    probe = AcceptWaitProbe(wait, lambda: True)
    server = GrpcServer(lambda call: probe.takes(call.method, call), [])
    probe.bind(server)
    server.start()
    probe.start()
    taken: dict[bool, list[float]] = {True: [], False: []}
    probes = []
    for turn in range(2 * turns):
        wait.on = bool(turn % 2)
        before, began, count = time.process_time(), time.monotonic(), sum(probe.waits.counts)
        await asyncio.sleep(seconds / 2)
        taken[wait.on].append((time.process_time() - before) / (time.monotonic() - began))
        if wait.on:
            probes.append((sum(probe.waits.counts) - count) / (time.monotonic() - began))
    probe.stop()
    await server.stop(0)
    extra, a_second = statistics.median(taken[True]) - statistics.median(taken[False]), statistics.median(probes)
    return {
        "probes_a_second": a_second,
        "cpu_with": statistics.median(taken[True]),
        "cpu_without": statistics.median(taken[False]),
        "us_a_probe": extra / a_second * 1e6,
    }


def _print(levels: Sequence[Level]) -> None:
    print("\nmilliseconds; off is what the daemon believed less what a call had waited\n")
    print("| load | offered/s | calls | waited p50 | p99 | believed p50 | p99 | off p50 | p10 | p90 | probes, mean |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for one in levels:
        figures = (
            one.waited_p50,
            one.waited_p99,
            one.believed_p50,
            one.believed_p99,
            one.off_p50,
            one.off_p10,
            one.off_p90,
            one.probes_mean,
        )
        cells = (f"{figure:.1f}" if figure is not None else "-" for figure in figures)
        print(f"| {one.load:g} | {one.offered:.0f} | {one.calls} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
