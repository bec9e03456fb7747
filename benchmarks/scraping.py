"""Measures a scrape of a daemon that serves many models, and its effect on traffic.

    python -m benchmarks.scraping --out build/bench

One daemon serves ``--models`` models. Each has answered, refused and expired some traced requests, so that every series
has values. Scrapes come from a process of their own and ask as Prometheus does. Bars:

- a scrape takes at most 50 ms, on the median, while nothing else runs;
- at ``--load`` of what one of the models can do, p99 of random arrivals while scraped every second is at most 1.1 times
  p99 without: the median over rounds of both, with requests that are due at the same times, in alternating order;
- in a closed loop that keeps the model busy throughout, scrapes every second cost less than 1 % of the responses: the
  median over pairs of adjacent windows, one of them scraped. Its confidence interval is by bootstrap; where the
  interval crosses the bar, the median decides and a warning says so.

Prints the figures, writes scraping.json to ``--out`` and exits with 1 when a bar is missed.
"""

import argparse
import asyncio
import gzip
import http.client
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from multiprocessing.synchronize import Event
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import uvloop
from grpc import StatusCode
from tests import models
from tests.system.daemon import Daemon
from tests.system.wire import request

from benchmarks.closed_loop import capacity
from benchmarks.open_loop import METHOD, Outcome, connected, poisson, quantile
from benchmarks.overload import FOREIGN_CPU, foreign_cpu, products, request_for
from inferd.tensors import DType

SCRAPE_BAR = 0.05
P99_BAR = 1.1
LOSS_BAR = 0.01

INTERVAL = 1.0
"""Seconds between scrapes."""
SETTLE = 0.5
"""Seconds of each run of arrivals that are left out at its start."""
BUSY = "busy"
"""The model that gets the load."""
OBJECTIVE = 3.0
"""Seconds; for the other models, which have no queue."""

# The headers of Prometheus 2.42.
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
    "User-Agent": "Prometheus/2.42.0",
    "X-Prometheus-Scrape-Timeout-Seconds": "10",
}


@dataclass(frozen=True, slots=True)
class Scrapes:
    """Times in seconds, bytes on the wire and as text; ``cpu`` is CPU time of the daemon for one."""

    number: int
    median: float
    p95: float
    most: float
    cpu: float
    samples: int
    wire_bytes: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Of requests answered OK, in seconds; ``failed`` were not."""

    count: int
    failed: int
    p50: float
    p99: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Latency":
        due = [o for o in outcomes if o.intended >= SETTLE * 1e9]
        answered = [o.latency / 1e9 for o in due if o.code == "OK"]
        p50, p99 = quantile(answered, 0.5), quantile(answered, 0.99)
        if p50 is None or p99 is None:
            raise SystemExit("nothing was answered; take longer --seconds or more --load")
        return cls(len(due), len(due) - len(answered), p50, p99)


@dataclass(frozen=True, slots=True)
class Tail:
    """All rounds together, and the ratio of p99 in each round with the median: a burst of other work on the machine
    spoils one round only."""

    rate: float
    alone: Latency
    scraped: Latency
    ratio: float
    ratios: list[float]


@dataclass(frozen=True, slots=True)
class Loss:
    """Responses a second in pairs of windows, (alone, scraped), the fraction that the scrapes cost, and its 95 %
    confidence interval."""

    pairs: list[tuple[float, float]]
    loss: float
    low: float
    high: float


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = _repository(Path(scratch) / "models", options)
        print(f"starting the daemon with {options.models} models", flush=True)
        # Otherwise the daemon would probe idle models.
        flags = ("--cache-dir", f"{scratch}/cache", "--request-log", "off", "--probe-interval", "0")
        with Daemon(repository, *flags) as daemon:
            uvloop.run(_acquaint(daemon.grpc, options))
            busy, start = foreign_cpu(daemon.process.pid), time.monotonic()
            with Scraper(daemon.metrics) as scraper:
                scrapes = _scrapes(daemon, options.scrapes)
                _print_scrapes(scrapes, options)
                message = request_for(daemon.grpc, BUSY)
                rate = uvloop.run(capacity(daemon.grpc, message, options.concurrency, 2.0))
                print(f"capacity {rate:.1f}/s, best of three windows", flush=True)
                tail = _tail(daemon.grpc, message, options.load * rate, scraper, options) if options.rounds else None
                loss = uvloop.run(_loss(daemon.grpc, message, scraper, options)) if options.pairs else None
            foreign = (foreign_cpu(daemon.process.pid) - busy) / (time.monotonic() - start)
    _print_load(tail, loss, options)
    if foreign > FOREIGN_CPU:
        print(f"other processes, the scraper among them, kept {foreign:.2f} CPUs busy: take these figures with care")
    misses = _misses(scrapes, tail, loss)
    report: dict[str, Any] = {"options": vars(options) | {"out": str(options.out)}, "capacity": rate}
    report |= {"scrapes": asdict(scrapes), "tail": tail and asdict(tail), "loss": loss and asdict(loss)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scraping.json").write_text(json.dumps(report | {"missed": misses}, indent=2) + "\n")
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scraping", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=int, default=50, help="how many are served, the busy one among them")
    parser.add_argument("--products", type=int, default=2, help="matrix products in the busy model: what a run costs")
    parser.add_argument("--scrapes", type=int, default=100, help="how many are timed while nothing else goes on")
    parser.add_argument("--load", type=float, default=0.5, help="of what the busy model can do, for latencies")
    parser.add_argument("--rounds", type=int, default=12, help="runs each alone and scraped, for latencies; 0 for none")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of such a run")
    parser.add_argument("--pairs", type=int, default=30, help="windows each alone and scraped, for answers; 0 for none")
    parser.add_argument("--window", type=float, default=4.0, help="seconds of such a window, a multiple of 1")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight that keep the model busy")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of scraping.json")
    return parser.parse_args()


def _repository(root: Path, options: argparse.Namespace) -> Path:
    # Two streams of one thread each: a run does not slow down when another starts.
    execution = "[execution]\nstreams = 2\nthreads = 2\ninfer_requests = 2\n"
    models.save(products(options.products), root, BUSY, settings=execution)
    small = f"[execution]\nstreams = 1\nthreads = 1\ninfer_requests = 1\n[objective]\nlatency_slo = {OBJECTIVE}\n"
    for number in range(1, options.models):
        models.save(models.identity(DType.FP32, [1]), root, _name(number), settings=small)
    return root


def _name(number: int) -> str:
    return f"model-{number:02}"


async def _acquaint(target: str, options: argparse.Namespace) -> None:
    """Send each of the small models some requests that it answers, refuses and lets expire."""
    chance = np.random.default_rng(0)

    def ask(infer: grpc.aio.UnaryUnaryMultiCallable, message: Any) -> Any:
        trace = f"00-{chance.bytes(16).hex()}-{chance.bytes(8).hex()}-01"
        return infer(message.SerializeToString(), metadata=(("traceparent", trace),))

    async with AsyncExitStack() as stack:
        infer = (await connected(stack, target))[0].unary_unary(METHOD)
        for number in range(1, options.models):
            x = {"x": np.ones(1, np.float32)}
            answered = [ask(infer, request(_name(number), x)) for _ in range(20)]
            refused = [ask(infer, request(_name(number), {}))]
            expired = [ask(infer, request(_name(number), x, parameters={"timeout": 1}))]
            assert [await call.code() for call in answered] == [StatusCode.OK] * len(answered)
            assert [await call.code() for call in refused] == [StatusCode.INVALID_ARGUMENT]
            assert [await call.code() for call in expired] == [StatusCode.DEADLINE_EXCEEDED]


# -- scrapes ----------------------------------------------------------------------


def scrape(address: str) -> bytes:
    """The body as received, compressed if the server does so."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/metrics", headers=HEADERS)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"a scrape was answered {response.status}: {body.decode()}")
        return body
    finally:
        connection.close()


def _scrape_every_second(address: str, on: Event, over: Event) -> None:
    """While ``on`` is set, until ``over`` is: the scraper's process."""
    while not over.is_set():
        if not on.wait(INTERVAL):
            continue
        due = time.monotonic()
        while on.is_set() and not over.is_set():
            scrape(address)
            due += INTERVAL
            over.wait(max(0.0, due - time.monotonic()))


class Scraper:
    """A process that scrapes ``address`` every second while :attr:`on` is set, and idles otherwise."""

    def __init__(self, address: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.on, self._over = context.Event(), context.Event()
        self._process = context.Process(target=_scrape_every_second, args=(address, self.on, self._over), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.on.set()
        self._process.join()

    def scrape(self, wanted: bool) -> None:
        """Start or stop scraping. A scrape in progress goes on."""
        if wanted:
            self.on.set()
        else:
            self.on.clear()


def _scrapes(daemon: Daemon, number: int) -> Scrapes:
    body = scrape(daemon.metrics)
    times, busy = [], cpu_seconds(daemon.process.pid)
    for _ in range(number):
        start = time.perf_counter()
        body = scrape(daemon.metrics)
        times.append(time.perf_counter() - start)
    cpu = (cpu_seconds(daemon.process.pid) - busy) / number
    text = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
    samples = sum(not line.startswith(b"#") for line in text.splitlines())
    p95 = quantile(times, 0.95) or math.nan
    return Scrapes(number, statistics.median(times), p95, max(times), cpu, samples, len(body), len(text))


def cpu_seconds(pid: int) -> float:
    """CPU time of process ``pid``."""
    # The name, in brackets, may hold anything; user and system time are the 14th and 15th field.
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


# -- load -------------------------------------------------------------------------


def _tail(target: str, message: bytes, rate: float, scraper: Scraper, options: argparse.Namespace) -> Tail:
    """Rounds of both, in alternating order."""
    all_alone, all_scraped, ratios = list[Outcome](), list[Outcome](), []
    for number in range(options.rounds):
        runs = {}
        for scraped in (False, True) if number % 2 == 0 else (True, False):
            scraper.scrape(scraped)
            runs[scraped] = uvloop.run(poisson(target, message, rate, SETTLE + options.seconds, seed=number))
        scraper.scrape(False)
        alone, scraped = Latency.of(runs[False]), Latency.of(runs[True])
        all_alone += runs[False]
        all_scraped += runs[True]
        ratios.append(scraped.p99 / alone.p99)
        print(
            f"round {number + 1} of {options.rounds}: p99 {_ms(alone.p99)} ms alone, {_ms(scraped.p99)} ms scraped",
            flush=True,
        )
    alone, scraped = Latency.of(all_alone), Latency.of(all_scraped)
    return Tail(rate, alone, scraped, statistics.median(ratios), ratios)


async def _loss(target: str, message: bytes, scraper: Scraper, options: argparse.Namespace) -> Loss:
    """One closed loop throughout, cut into windows: drift affects both windows of a pair alike."""
    answered = 0
    over = False
    pairs: list[tuple[float, float]] = []
    async with AsyncExitStack() as stack:
        senders = [channel.unary_unary(METHOD) for channel in await connected(stack, target)]

        async def ask(send: grpc.aio.UnaryUnaryMultiCallable) -> None:
            nonlocal answered
            while not over:
                await send(message)
                answered += 1

        async def window(scraped: bool) -> float:
            scraper.scrape(scraped)
            # A scrape from the previous window may still be in progress.
            await asyncio.sleep(INTERVAL / 2)
            first, start = answered, time.monotonic()
            await asyncio.sleep(options.window)
            return (answered - first) / (time.monotonic() - start)

        async with asyncio.TaskGroup() as group:
            for send in islice(cycle(senders), options.concurrency):
                group.create_task(ask(send))
            await window(scraped=False)
            for number in range(options.pairs):
                order = (False, True) if number % 2 == 0 else (True, False)
                rates = {scraped: await window(scraped) for scraped in order}
                pairs.append((rates[False], rates[True]))
                print(
                    f"pair {number + 1} of {options.pairs}: {rates[False]:.1f}/s alone, {rates[True]:.1f}/s scraped",
                    flush=True,
                )
            over = True
    scraper.scrape(False)
    losses = np.array([1 - scraped / alone for alone, scraped in pairs])
    again = np.random.default_rng(0).choice(losses, (10_000, losses.size))
    low, high = np.quantile(np.median(again, axis=1), (0.025, 0.975))
    return Loss(pairs, float(np.median(losses)), float(low), float(high))


# -- the result -------------------------------------------------------------------


def _misses(scrapes: Scrapes, tail: Tail | None, loss: Loss | None) -> list[str]:
    """The missed bars, in words."""
    found = []
    if scrapes.median > SCRAPE_BAR:
        found.append(f"a scrape takes {_ms(scrapes.median)} ms, above {_ms(SCRAPE_BAR)}")
    if tail is not None:
        if tail.ratio > P99_BAR:
            found.append(f"p99 while scraped is {tail.ratio:.2f} times p99 without, above {P99_BAR}")
        if failed := tail.alone.failed + tail.scraped.failed:
            found.append(f"{failed} requests were not answered")
    if loss is not None and loss.loss >= LOSS_BAR:
        found.append(f"scrapes every second cost {loss.loss:.2%} of the answers, not less than {LOSS_BAR:.0%}")
    return found


def _print_scrapes(seen: Scrapes, options: argparse.Namespace) -> None:
    print(f"\nscrapes of {options.models} models while nothing else goes on, ms\n")
    print("| scrapes | median | p95 | most | CPU time | samples | bytes on the wire | bytes of text | bar |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    times = " | ".join(map(_ms, (seen.median, seen.p95, seen.most, seen.cpu)))
    sizes = f"{seen.samples} | {seen.wire_bytes} | {seen.text_bytes}"
    print(f"| {seen.number} | {times} | {sizes} | {_ms(SCRAPE_BAR)} |\n", flush=True)


def _print_load(tail: Tail | None, loss: Loss | None, options: argparse.Namespace) -> None:
    if tail is not None:
        print(f"\n{options.rounds} rounds of {options.seconds:g} s at {tail.rate:.1f} random arrivals a second, ms\n")
        print("| | requests | p50 | p99 |\n|---|---:|---:|---:|")
        for title, seen in (("alone", tail.alone), ("scraped every second", tail.scraped)):
            print(f"| {title} | {seen.count} | {_ms(seen.p50)} | {_ms(seen.p99)} |")
        each = ", ".join(f"{ratio:.2f}" for ratio in tail.ratios)
        print(f"\nratio of p99 {tail.ratio:.3f}, the median of {each} (bar {P99_BAR})")
    if loss is not None:
        alone, scraped = (statistics.median(rates) for rates in zip(*loss.pairs, strict=True))
        spread = statistics.quantiles((1 - s / a for a, s in loss.pairs), n=4)
        print(
            f"\n{len(loss.pairs)} pairs of windows of {options.window:g} s, {options.concurrency} requests in flight\n"
        )
        print("| answers/s alone | scraped every second | cost | 95 % interval | quartiles of the pairs | bar |")
        print("|---:|---:|---:|---:|---:|---:|")
        print(
            f"| {alone:.1f} | {scraped:.1f} | {loss.loss:.2%} | {loss.low:.2%} .. {loss.high:.2%} "
            f"| {spread[0]:.2%} .. {spread[2]:.2%} | {LOSS_BAR:.0%} |\n"
        )
        if loss.low < LOSS_BAR <= loss.high:
            print("the bar lies within the interval: take more --pairs")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


if __name__ == "__main__":
    sys.exit(main())
