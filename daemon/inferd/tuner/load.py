"""Puts load straight into a dispatcher and measures the results: closed-loop, or open-loop with random arrivals.

The wire is left out because it costs the same for every candidate. Everything else is as in
service: the same scheduler on the same kind of event loop.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, cycle
from random import Random

from inferd.dispatcher import Dispatcher
from inferd.errors import Cancelled, InferdError
from inferd.requests import SequenceStep
from inferd.rollout.synthetic_request import synthetic_request
from inferd.tensors import Signature, Tensor
from inferd.tuning.measurement import MeasurementWindow

# A window of a slow model is extended until it holds this many answers, up to this many times its length.
_LEAST_ANSWERS = 25
_MOST_STRETCH = 6.0
# The same arrivals for every candidate.
_SEED = 20
# A request not answered this many seconds after the last one was due counts as never answered.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests to send: ``samples`` in turn, each with one tensor per input port of ``signature``; with
    ``dynamic_batching`` requests may share a run."""

    signature: Signature
    samples: Sequence[Sequence[Tensor]]
    dynamic_batching: bool


class _Reply:
    """Stands in for a client; calls ``ended`` with the error of a failed request, None on success."""

    def __init__(self, ended: Callable[[InferdError | None], None]) -> None:
        self._ended = ended

    def answer(self, outputs: Sequence[Tensor]) -> None:
        for tensor in outputs:
            if isinstance(tensor.data, memoryview):
                tensor.data.tobytes()  # stands in for encoding
        self._ended(None)

    def fail(self, error: InferdError) -> None:
        self._ended(error)


class LoadGenerator:
    """Loads ``dispatcher``, which gets no other requests, with ``traffic``."""

    def __init__(self, dispatcher: Dispatcher, traffic: Traffic) -> None:
        self._dispatcher = dispatcher
        self._traffic = traffic
        self._samples = cycle(traffic.samples)
        self._sequences = count(1)
        self._loop = asyncio.get_running_loop()
        self._latencies: list[float] = []
        self._wanted = 0
        self._enough = asyncio.Event()
        self._failure: InferdError | None = None
        self._going = False

    async def closed_loop(self, in_flight: int, windows: int, seconds: float, settle: float) -> list[MeasurementWindow]:
        """Keep ``in_flight`` requests running for ``windows`` of ``seconds`` each, after ``settle`` seconds.

        A window with few answers is extended, at least until the first answer. Returns once nothing is in
        flight. Raises the error of the first request that failed.
        """
        self._going = True
        for _ in range(in_flight):
            self._ask_again(next(self._sequences), first=True)
        try:
            await self._window(settle, 0)
            return [await self._window(seconds, _LEAST_ANSWERS) for _ in range(windows)]
        finally:
            await self._end()

    async def until(self, over: asyncio.Event, in_flight: int) -> None:
        """Keep ``in_flight`` requests running until ``over`` is set or one fails; returns once ``over`` is set."""
        self._going = True
        for _ in range(in_flight):
            self._ask_again(next(self._sequences), first=True)
        try:
            await over.wait()
        finally:
            await self._end()

    async def open_loop(self, rate: float, seconds: float) -> MeasurementWindow:
        """Random arrivals at ``rate`` per second. Latency counts from the moment a request was due. It is infinite for
        a request that is refused, fails or is not answered within :data:`_PATIENCE` seconds."""
        chance, at, dues = Random(_SEED), 0.0, list[int]()  # noqa: S311 - nothing is secret here
        begun = time.monotonic_ns()
        while (at := at + chance.expovariate(rate)) < seconds:
            dues.append(begun + int(at * 1e9))
        latencies: list[float] = []
        all_ended = asyncio.Event()

        def ended(due: int, error: InferdError | None) -> None:
            latencies.append(float("inf") if error is not None else (time.monotonic_ns() - due) / 1e9)
            if len(latencies) == len(dues):
                all_ended.set()

        for due in dues:
            while (wait := due - time.monotonic_ns()) > 0:  # noqa: ASYNC110 - it waits for a point in time
                await asyncio.sleep(wait / 1e9)
            step = SequenceStep(next(self._sequences), start=True, end=True)
            self._put(_Reply(lambda error, due=due: ended(due, error)), due, step)  # type: ignore[misc]
        if dues:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await all_ended.wait()
        # Leftovers would disturb the next measurement.
        self._dispatcher.abort(Cancelled(""))
        await self._dispatcher.drained()
        return MeasurementWindow(seconds, tuple(sorted(latencies)))

    async def _end(self) -> None:
        self._going = False
        await self._dispatcher.drained()
        # Sequences hold infer requests, which other clients will need.
        self._dispatcher.disconnected(self)

    async def _window(self, seconds: float, least: int) -> MeasurementWindow:
        self._latencies = []
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        await self._answers(least, seconds * (_MOST_STRETCH - 1))
        # Without a single answer, a window would say nothing about the slowest models.
        await self._answers(min(least, 1), None)
        if self._failure is not None:
            raise self._failure
        return MeasurementWindow(time.monotonic() - begun, tuple(sorted(self._latencies)))

    async def _answers(self, wanted: int, seconds: float | None) -> None:
        """Wait until the window has ``wanted`` answers, a request has failed, or ``seconds`` have passed."""
        self._wanted = wanted
        self._enough.clear()
        if len(self._latencies) < wanted and self._failure is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._enough.wait()

    def _ask_again(self, sequence: int, *, first: bool = False) -> None:
        if not self._going:
            return
        asked = time.monotonic_ns()

        def ended(error: InferdError | None) -> None:
            if error is not None:
                self._failure, self._going = self._failure or error, False
                self._enough.set()
                return
            self._latencies.append((time.monotonic_ns() - asked) / 1e9)
            if len(self._latencies) == self._wanted:
                self._enough.set()
            # Later, because the dispatcher is still answering other requests.
            self._loop.call_soon(self._ask_again, sequence)

        self._put(_Reply(ended), asked, SequenceStep(sequence, start=first, owner=self))

    def _put(self, reply: _Reply, received: int, step: SequenceStep) -> None:
        inputs = next(self._samples)
        signature = self._traffic.signature
        request = synthetic_request(
            signature,
            inputs,
            reply,
            # For a stateful model, one client is one sequence.
            step=step if signature.stateful else None,
            batch_key=signature.batch_key(inputs) if self._traffic.dynamic_batching else None,
            received=received,
            shadow=False,
        )
        try:
            self._dispatcher.submit(request)
        except InferdError as error:
            reply.fail(error)
