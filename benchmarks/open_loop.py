"""An open loop: requests leave when they are due, whether or not earlier ones were answered.

Latency counts from when a request was *due*, not from when it left. A client that falls behind, because it or the
server is slow, thus makes the figures worse and never better (leaving that wait out is known as coordinated omission).
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import grpc
import numpy as np
import numpy.typing as npt

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CHANNEL_OPTIONS = [
    # One connection for each channel; otherwise grpc lets equal channels share one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # Refusals are counted, not retried.
    ("grpc.enable_retries", 0),
]
CHANNELS = 4
UNANSWERED = "UNANSWERED"
"""The code of a request that was given up without a response."""

_CONNECT_TIMEOUT = 10.0
_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one request. All times are nanoseconds.

    ``intended`` is when it was due, counted from the start of the run, and ``lag`` how much later
    it left. ``latency`` runs from when it was due to the response, or to when the client gave up. ``code`` is the name
    of the gRPC status, or :data:`UNANSWERED`.
    """

    intended: int
    lag: int
    latency: int
    code: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates are per second, times in seconds; a quantile without values is None.

    ``goodput`` is the rate of responses within the objective, ``p50`` and ``p99`` are of the requests answered OK,
    ``lag_p99`` is how late the client itself was.
    """

    offered: float
    answered: float
    goodput: float
    refused: float
    expired: float
    failed: float
    unanswered: float
    p50: float | None
    p99: float | None
    lag_p99: float | None

    @classmethod
    def of(cls, runs: Sequence[Sequence[Outcome]], settle: float, seconds: float, objective: float) -> "Figures":
        """Over all of the equal ``runs``, each observed from ``settle`` s after its start for ``seconds`` s.

        A response counts in the rates if it came within that window, a latency if its request was due then. So neither
        the work left over at the end nor the empty queue at the start distorts a figure.
        """
        opens, closes = settle * 1e9, (settle + seconds) * 1e9
        total = seconds * len(runs)
        due = [o for run in runs for o in run if opens <= o.intended < closes]
        ended = [o for run in runs for o in run if opens <= o.intended + o.latency < closes]
        codes = [o.code for o in ended]
        known = {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", UNANSWERED}
        latencies = [o.latency / 1e9 for o in due if o.code == "OK"]
        return cls(
            offered=len(due) / total,
            answered=codes.count("OK") / total,
            goodput=sum(o.code == "OK" and o.latency <= objective * 1e9 for o in ended) / total,
            refused=codes.count("RESOURCE_EXHAUSTED") / total,
            expired=codes.count("DEADLINE_EXCEEDED") / total,
            failed=sum(code not in known for code in codes) / total,
            # The client gave these up after the window: they count by when they were due.
            unanswered=sum(o.code == UNANSWERED for o in due) / total,
            p50=quantile(latencies, 0.5),
            p99=quantile(latencies, 0.99),
            lag_p99=quantile((o.lag / 1e9 for o in due), 0.99),
        )


def quantile(values: Iterable[float], share: float) -> float | None:
    """The smallest of ``values`` that at least ``share`` of them do not exceed; None when there are none.

    Always one of the values, never interpolated between two.
    """
    known = np.fromiter(values, np.float64)
    return float(np.quantile(known, share, method="inverted_cdf")) if known.size else None


def arrivals(rate: float, seconds: float, seed: int) -> "npt.NDArray[np.int64]":
    """When requests are due, in nanoseconds from 0: ``rate`` a second on average, with exponential gaps."""
    chance = np.random.default_rng(seed)
    times = np.empty(0)
    while not times.size or times[-1] < seconds:
        gaps = chance.exponential(1 / rate, max(64, int(rate * seconds)))
        times = np.concatenate([times, np.cumsum(gaps) + (times[-1] if times.size else 0.0)])
    return (times[times < seconds] * 1e9).astype(np.int64)


async def poisson(
    target: str, request: bytes, rate: float, seconds: float, seed: int, patience: float = 5.0
) -> list[Outcome]:
    """Send ``request``, a serialised ModelInferRequest, to ``target`` at the times of :func:`arrivals`.

    Ends at most ``patience`` seconds after the last one left and cancels the requests that have no response by then.
    Outcomes are in the order of their times. Raises TimeoutError when ``target`` can't be reached.
    """
    due = arrivals(rate, seconds, seed).tolist()
    sent, ended = [0] * len(due), [0] * len(due)
    calls: list[grpc.aio.UnaryUnaryCall] = []
    all_ended, pending = asyncio.Event(), len(due)

    def end(index: int, _: object) -> None:
        nonlocal pending
        ended[index] = time.monotonic_ns()
        pending -= 1
        if not pending:
            all_ended.set()

    async with AsyncExitStack() as stack:
        # Requests and responses stay bytes: nothing is serialised here.
        senders = cycle([channel.unary_unary(METHOD) for channel in await connected(stack, target)])
        start = time.monotonic_ns()
        for index, at in enumerate(due):
            while (wait := start + at - time.monotonic_ns()) > 0:  # noqa: ASYNC110 - what is waited for is the time
                # Loops count in milliseconds: rounded down, this would spin, on a core the server needs.
                await asyncio.sleep(-(-wait // _MS) / 1000)
            sent[index] = time.monotonic_ns()
            call = next(senders)(request)
            call.add_done_callback(partial(end, index))
            calls.append(call)
        try:
            async with asyncio.timeout(patience):
                if due:
                    await all_ended.wait()
        except TimeoutError:
            pass
        given_up = time.monotonic_ns()
        answered = [bool(at) for at in ended]
        for call in calls:
            call.cancel()
        # Read after the run, not in a task for each call: that would double the client's work.
        codes = [(await call.code()).name if known else UNANSWERED for call, known in zip(calls, answered, strict=True)]
    return [
        Outcome(at, left - start - at, (over if known else given_up) - start - at, code)
        for at, left, over, known, code in zip(due, sent, ended, answered, codes, strict=True)
    ]


async def connected(stack: AsyncExitStack, target: str) -> list[grpc.aio.Channel]:
    """Channels to ``target`` that are ready, closed by ``stack``."""
    channels = [
        await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
        for _ in range(CHANNELS)
    ]
    async with asyncio.timeout(_CONNECT_TIMEOUT):
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
    return channels
