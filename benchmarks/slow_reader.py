"""Measures what a client that does not read its responses costs the daemon and its other clients.

    python -m benchmarks.slow_reader --out build/bench

A process of its own asks for 256 MiB of responses on one stream and reads nothing until it is told to. A steady stream
of small requests on another connection is timed alone and next to the stalled stream, in rounds of alternating order,
with requests that are due at the same times. The slow stream is stalled once its window is closed and everything that
the daemon will compute for it is computed and waits. Half of the rounds send small requests for large responses, the
others requests as large as their responses. Bars:

- the steady stream's p99, over all rounds, is at most 1.2 times what it is alone;
- the daemon's resident memory never exceeds the lowest level it had without a slow reader by more than :func:`bound`;
- in the end the slow reader gets all it asked for, whole and in order.

The latency while the slow reader catches up, when both have work for the daemon, is shown and has no bar.

Prints both tables, writes slow_reader.json to ``--out`` and exits with 1 when a bar is missed.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from tests import models
from tests.system import echo_models, wide_answers
from tests.system.daemon import Daemon
from tests.system.gauges import gauge
from tests.system.wide_answers import ANSWER
from tests.system.wire import connect, counts, method, request

from benchmarks.open_loop import CHANNEL_OPTIONS, Outcome, arrivals, quantile
from benchmarks.overload import FOREIGN_CPU, foreign_cpu
from inferd._pb import open_inference_pb2 as pb
from inferd.config.daemon import Settings
from inferd.tensors import DType

RATIO_BAR = 1.2
SETTLE = 0.5
"""Seconds of each run that are left out at its start: its stream is being opened."""
CATCH_UP = 1.5
"""Seconds of steady requests once the slow reader is told to read; those after its last answer are left out."""
STILL = 0.5
"""Seconds without a change after which a stream counts as stalled."""

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
FAILED = "FAILED"
"""The code of a request of the steady stream that got no answer, or not its own."""

_MIB = 1 << 20
_PATIENCE = 60.0

Ask = Callable[[int], pb.ModelInferRequest]


def mirrored(number: int) -> pb.ModelInferRequest:
    """The request ``number`` of a stream, as large as its answer, whose size the model leaves open."""
    return request("mirror", {"x": np.full(ANSWER // 8, number, np.int64)}, str(number))


ASKS: dict[str, Ask] = {"large answers": wide_answers.ask, "large requests too": mirrored}


def bound(window: int, asked: int, size: int, answer: int) -> int:
    """The most bytes that a slow reader may cost that sends ``asked`` requests of ``size`` bytes.

    By the docstrings of rpc/stream.py, in their order: the window (stream_max_pending_bytes) with the last request
    that it was open for and that one's answer; a second copy of requests in flight, which may be all there is in
    it; gRPC's copy of the answer it is sending; and requests that gRPC receives ahead. For these gRPC's window is
    4 MiB, or twice what it believes to be on the wire (``TransportFlowControl`` in its flow_control.cc): 16 MiB.

    An answer has two further copies while it is encoded. And the allocator keeps memory that was freed: 48 MiB, of
    which 31 were seen, with large answers and after many slow readers. Where it keeps none (that is, with
    MALLOC_MMAP_THRESHOLD_=131072 in the daemon's environment), a window of 64 MiB cost 68 MiB: just what the rest
    adds up to.
    """
    in_window = window + size + answer
    twice = in_window // (size + answer) * size
    ahead = min(asked * size, 16 * _MIB)
    return in_window + twice + 3 * answer + ahead + 48 * _MIB


@dataclass(frozen=True, slots=True)
class Latency:
    """Of steady requests: their number, the number lost, quantiles and the lag of the client, in seconds."""

    count: int
    lost: int
    p50: float
    p99: float
    lag_p99: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Latency":
        """A lost request counts as infinitely slow."""
        latencies = [o.latency / 1e9 if o.code == "OK" else math.inf for o in outcomes]
        p50, p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
        lag_p99 = quantile((o.lag / 1e9 for o in outcomes), 0.99)
        if p50 is None or p99 is None or lag_p99 is None:
            raise SystemExit("no request was due; take longer --seconds")
        return cls(len(outcomes), latencies.count(math.inf), p50, p99, lag_p99)


@dataclass(frozen=True, slots=True)
class Tally:
    """The slow reader's responses: missing or wrong ones, and when the last came, in ns of the monotonic clock."""

    damaged: int
    ended: int


@dataclass(frozen=True, slots=True)
class Round:
    """The steady stream in its three states, and the memory that the slow reader cost, in bytes; ``asked`` names its
    requests.

    ``held`` is the daemon's growth when the slow stream had stalled, ``peak`` the most there was until its end.
    ``moved`` counts answers computed for it while it should have stood still, ``damaged`` those it missed or got
    wrong. ``foreign`` is how many CPUs other processes kept busy during the runs.
    """

    asked: str
    alone: list[Outcome]
    stalled: list[Outcome]
    catching_up: list[Outcome]
    held: int
    peak: int
    bound: int
    moved: int
    damaged: int
    foreign: float


@dataclass(frozen=True, slots=True)
class Report:
    """The steady stream in its three states over all rounds; ratios are p99 next to the slow reader over p99 alone."""

    alone: Latency
    stalled: Latency
    catching_up: Latency
    ratio: float
    median_ratio: float

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> "Report":
        alone, stalled = Latency.of(_all(r.alone for r in rounds)), Latency.of(_all(r.stalled for r in rounds))
        ratios = [Latency.of(r.stalled).p99 / Latency.of(r.alone).p99 for r in rounds]
        catching_up = Latency.of(_all(r.catching_up for r in rounds))
        return cls(alone, stalled, catching_up, stalled.p99 / alone.p99, statistics.median(ratios))


def _all(runs: Iterable[list[Outcome]]) -> list[Outcome]:
    return list(chain.from_iterable(runs))


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = _repository(Path(scratch) / "models")
        flags = ("--cache-dir", f"{scratch}/cache", "--stream-max-pending-bytes", str(options.window * _MIB))
        print("starting the daemon", flush=True)
        with Daemon(repository, *flags) as daemon, SlowReader(daemon.grpc, options.asked) as reader:
            rounds = Bench(daemon, reader, options).rounds()
    report = Report.of(rounds)
    misses = _misses(rounds, report)
    _print(rounds, report)
    options.out.mkdir(parents=True, exist_ok=True)
    figures = asdict(report)
    written = {"options": {key: str(value) for key, value in vars(options).items()}, "with": figures.pop("stalled")}
    written |= figures
    written |= {"rounds": [_flat(one) for one in rounds], "missed": misses}
    (options.out / "slow_reader.json").write_text(json.dumps(_finite(written), indent=2) + "\n")
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


def _options() -> argparse.Namespace:
    window = Settings.model_fields["stream_max_pending_bytes"].default // _MIB
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slow_reader", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=8, help="a multiple of 4: both orders of both kinds of requests")
    parser.add_argument("--seconds", type=float, default=4.5, help="length of each run")
    parser.add_argument("--rate", type=float, default=300.0, help="steady requests a second, at random times")
    parser.add_argument("--asked", type=int, default=256, help="MiB of answers the slow reader asks for")
    parser.add_argument("--window", type=int, default=window, help="the daemon's stream_max_pending_bytes, in MiB")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of slow_reader.json")
    options = parser.parse_args()
    if options.rounds < 4 or options.rounds % 4:
        parser.error("--rounds must be a multiple of 4")
    if options.asked < options.window + 32:
        parser.error("--asked must exceed --window by 32: what the connection holds would keep it from stalling")
    return options


def _repository(root: Path) -> Path:
    """Models that run one request at a time, so that they soon have all their memory; returns ``root``."""
    for name in ("small", "mirror"):
        models.save(models.identity(DType.INT64, [-1]), root, name, settings=echo_models.serial(1024))
    models.save(wide_answers.model(), root, "wide", settings=echo_models.serial(1024))
    return root


# -- the result -------------------------------------------------------------------


def _misses(rounds: Sequence[Round], report: Report) -> list[str]:
    found = []
    if not report.ratio <= RATIO_BAR:
        found.append(f"p99 next to the slow reader is {report.ratio:.2f} times p99 alone, above {RATIO_BAR:g}")
    if lost := report.alone.lost + report.stalled.lost + report.catching_up.lost:
        found.append(f"{lost} steady requests were not answered as they should be")
    for number, one in enumerate(rounds, 1):
        if one.peak > one.bound:
            found.append(f"round {number}: the daemon grew by {_mib(one.peak)} MiB, above {_mib(one.bound)}")
        if one.damaged:
            found.append(f"round {number}: {one.damaged} answers of the slow reader were missing or wrong")
        if one.moved:
            found.append(f"round {number}: {one.moved} answers were computed for the slow reader, which stood still")
    return found


def _print(rounds: Sequence[Round], report: Report) -> None:
    print("\nsteady stream, times in ms          requests  lost     p50     p99  client lag p99")
    for title, seen in (
        ("alone", report.alone),
        ("next to the stalled slow reader", report.stalled),
        ("while that catches up (not judged)", report.catching_up),
    ):
        print(f"{title:34}  {seen.count:8}  {seen.lost:4}  {_ms(seen.p50)}  {_ms(seen.p99)}  {_ms(seen.lag_p99):>14}")
    print("\nround  asked for           p99 alone  stalled  ratio  growth when stalled  peak  bound  other CPU")
    for number, one in enumerate(rounds, 1):
        alone, stalled = Latency.of(one.alone), Latency.of(one.stalled)
        print(
            f"{number:5}  {one.asked:18}  {_ms(alone.p99):>9}  {_ms(stalled.p99):>7}  {stalled.p99 / alone.p99:5.2f}"
            f"  {_mib(one.held):>19}  {_mib(one.peak):>4}  {_mib(one.bound):>5}  {one.foreign:9.2f}"
        )
    print("p99 in ms; growth of the daemon's memory, its peak and its bound in MiB")
    print(
        f"\nratio of p99  {report.ratio:.2f} over all rounds (bar {RATIO_BAR:g}),"
        f" median of the rounds {report.median_ratio:.2f}"
    )
    if (most := max(one.foreign for one in rounds)) > FOREIGN_CPU:
        print(f"other processes kept up to {most:.2f} CPUs busy during a run: take these figures with care")


def _flat(one: Round) -> dict[str, Any]:
    """One round for the report, with figures instead of outcomes."""
    kept = ("asked", "held", "peak", "bound", "moved", "damaged", "foreign")
    figures = {"alone": asdict(Latency.of(one.alone)), "with": asdict(Latency.of(one.stalled))}
    return figures | {name: getattr(one, name) for name in kept}


def _finite(value: Any) -> Any:
    """``value`` with None for infinities, which JSON lacks."""
    match value:
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list():
            return [_finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:6.2f}"


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f}"


# -- the rounds -------------------------------------------------------------------


class Bench:
    """All rounds with one daemon and one slow reader."""

    def __init__(self, daemon: Daemon, reader: "SlowReader", options: argparse.Namespace) -> None:
        self._daemon = daemon
        self._reader = reader
        self._options = options
        self._level = 0
        self.foreign_cpu: list[float] = []

    def rounds(self) -> list[Round]:
        """Measure."""
        for ask in (*ASKS.values(), *ASKS.values()):
            _infer(self._daemon.grpc, ask(0))
        self._steady(seed=0)
        self._level = self._resident("VmRSS")
        print(f"the daemon has {_mib(self._level)} MiB resident", flush=True)
        return [self._round(number) for number in range(self._options.rounds)]

    def _round(self, number: int) -> Round:
        asked, seed = list(ASKS)[number // 2 % 2], 1 + number
        ask = ASKS[asked]
        print(f"round {number + 1} of {self._options.rounds}: {asked}", flush=True)
        self.foreign_cpu.clear()
        alone = self._steady(seed) if number % 2 == 0 else []
        self._level = min(self._level, self._resident("VmRSS"))
        self._forget_peak()
        before = self._answered(ask)
        self._reader.ask(asked)
        computed = self._until_stalled(ask, before)
        held = self._resident("VmRSS") - self._level
        stalled = self._steady(seed)
        moved = self._answered(ask) - computed
        catching_up, tally = self._catch_up(seed)
        peak = self._resident("VmHWM") - self._level
        alone = alone or self._steady(seed)
        limit = bound(self._options.window * _MIB, self._options.asked * _MIB // ANSWER, ask(0).ByteSize(), ANSWER)
        foreign = max(self.foreign_cpu)
        return Round(asked, alone, stalled, catching_up, held, peak, limit, moved, tally.damaged, foreign)

    def _steady(self, seed: int) -> list[Outcome]:
        busy, began = foreign_cpu(self._daemon.process.pid), time.monotonic()
        outcomes = steady(self._daemon.grpc, self._options.rate, SETTLE + self._options.seconds, seed)
        self.foreign_cpu.append((foreign_cpu(self._daemon.process.pid) - busy) / (time.monotonic() - began))
        return [o for o in outcomes if o.intended >= SETTLE * 1e9]

    def _catch_up(self, seed: int) -> tuple[list[Outcome], Tally]:
        began = time.monotonic_ns()
        Timer(SETTLE, self._reader.read).start()
        outcomes = steady(self._daemon.grpc, self._options.rate, SETTLE + CATCH_UP, seed)
        tally = self._reader.tally()
        return [o for o in outcomes if SETTLE * 1e9 <= o.intended < tally.ended - began], tally

    def _answered(self, ask: Ask) -> int:
        return counts(self._daemon).get((ask(0).model_name, "ok"), 0)

    def _until_stalled(self, ask: Ask, before: int) -> int:
        """The number of responses once the daemon has filled the window and nothing has changed for :data:`STILL`
        seconds."""
        model, least = ask(0).model_name, before + self._options.window * _MIB // ANSWER - 1
        given_up = time.monotonic() + _PATIENCE
        seen, since = self._answered(ask), time.monotonic()
        while seen < least or time.monotonic() - since < STILL:
            if time.monotonic() > given_up:
                raise SystemExit(
                    f"the slow stream does not stall: {seen - before} answers so far\n{self._daemon.log()}"
                )
            time.sleep(0.05)
            idle = not gauge(self._daemon, "inferd_infer_requests_busy", model) and not gauge(
                self._daemon, "inferd_queue_length", model
            )
            if (now := self._answered(ask)) != seen or not idle:
                seen, since = now, time.monotonic()
        return seen

    def _resident(self, name: str) -> int:
        """Bytes the daemon has resident: VmRSS now, VmHWM at the most."""
        status = Path(f"/proc/{self._daemon.process.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024

    def _forget_peak(self) -> None:
        Path(f"/proc/{self._daemon.process.pid}/clear_refs").write_text("5\n")


def steady(target: str, rate: float, seconds: float, seed: int) -> list[Outcome]:
    """Small requests on one stream, due at the times of :func:`arrivals`; ends when all are answered.

    Uses threads, since the timers of a loop count in milliseconds, which is as long as such a request takes.
    """
    due = arrivals(rate, seconds, seed).tolist()
    messages = [request("small", {"x": np.array([n])}, str(n)).SerializeToString() for n in range(len(due))]
    sent: list[int] = []

    def leave(start: int) -> Iterator[bytes]:
        for at, message in zip(due, messages, strict=True):
            if (wait := start + at - time.monotonic_ns()) > 0:
                time.sleep(wait / 1e9)
            sent.append(time.monotonic_ns())
            yield message

    with grpc.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(timeout=_PATIENCE)
        start = time.monotonic_ns()
        answers = [(time.monotonic_ns(), raw) for raw in channel.stream_stream(METHOD)(leave(start))]
    if len(answers) != len(due):
        raise SystemExit(f"the steady stream got {len(answers)} answers to {len(due)} requests")
    return [
        Outcome(at, left - start - at, ended - start - at, "OK" if _is_answer(raw, number) else FAILED)
        for number, (at, left, (ended, raw)) in enumerate(zip(due, sent, answers, strict=True))
    ]


def _is_answer(raw: bytes, number: int) -> bool:
    answer = pb.ModelStreamInferResponse.FromString(raw)
    return not answer.error_message and answer.infer_response.id == str(number)


def _infer(target: str, message: pb.ModelInferRequest) -> None:
    async def ask() -> None:
        async with connect(target) as channel:
            await method(channel, "ModelInfer")(message)

    asyncio.run(ask())


# -- the slow reader's process ----------------------------------------------------


class SlowReader:
    """A process that asks ``target`` for ``asked`` MiB on one stream when told to, and reads when told to."""

    def __init__(self, target: str, asked: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_client, args=(theirs, target, asked * _MIB // ANSWER), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()

    def ask(self, asked: str) -> None:
        """Open a stream and send all requests of this name in :data:`ASKS`."""
        self._pipe.send(asked)

    def read(self) -> None:
        """Read all answers now."""
        self._pipe.send("read")

    def tally(self) -> Tally:
        """What it has read, once it has read everything."""
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit("the slow reader failed; its traceback stands above") from None


def _client(pipe: "Connection[Any, Any]", target: str, number: int) -> None:
    with suppress(EOFError):
        while True:
            asyncio.run(_ask_and_read(pipe, target, ASKS[pipe.recv()], number))


async def _ask_and_read(pipe: "Connection[Any, Any]", target: str, ask: Ask, number: int) -> None:
    async with connect(target) as channel:
        call = method(channel, "ModelStreamInfer")()
        sending = asyncio.create_task(_send(call, ask, number))
        await asyncio.to_thread(pipe.recv)
        damaged = sum([not _is_whole(await call.read(), ask(place)) for place in range(number)])
        pipe.send(Tally(damaged, time.monotonic_ns()))
        await sending


async def _send(call: Any, ask: Ask, number: int) -> None:
    for place in range(number):
        await call.write(ask(place))
    await call.done_writing()


def _is_whole(answer: Any, asked: pb.ModelInferRequest) -> bool:
    """Whether ``answer`` is the response to ``asked``, bit for bit; None is not."""
    if answer is grpc.aio.EOF or answer.error_message:
        return False
    value, response = asked.raw_input_contents[0], answer.infer_response
    whole = value * (ANSWER // len(value))
    return response.id == asked.id and list(response.raw_output_contents) == [whole]


if __name__ == "__main__":
    sys.exit(main())
