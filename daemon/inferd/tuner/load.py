"""Puts load straight into a dispatcher and measures the results: closed-loop, and open-loop as in real traffic.

No wire in between: it costs the same whatever the candidate. What differs is measured
as it is served, by the same scheduler on the same kind of event loop.
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

# A window of a slow model is stretched until it holds so many answers, to so many times its length at most.
_LEAST_ANSWERS = 25
_MOST_STRETCH = 6.0
# The same arrivals for every candidate.
_SEED = 20
# What is not answered so many seconds after the last request was due won't be in time.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent: ``samples`` in turn, each a tensor an input port, of ``signature``; ``dynamic_batching`` where
    requests may run together."""

    signature: Signature
    samples: Sequence[Sequence[Tensor]]
    dynamic_batching: bool


class _Reply:
    """Takes a client's place; ``ended`` is called with the error of a request that failed."""

    def __init__(self, ended: Callable[[InferdError | None], None]) -> None:
        self._ended = ended

    def answer(self, outputs: Sequence[Tensor]) -> None:
        for tensor in outputs:
            if isinstance(tensor.data, memoryview):
                tensor.data.tobytes()  # as encoding would
        self._ended(None)

    def fail(self, error: InferdError) -> None:
        self._ended(error)


class LoadGenerator:
    """Puts ``traffic`` into ``dispatcher``, which gets no other requests."""

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
        """``in_flight`` requests all the time, each put in again once it is answered, for ``windows`` of ``seconds``
        after ``settle``.

        Where little comes in that time a window is longer, and has one answer at least. Returns once nothing is
        in flight any more. Raises the error of the first request that failed.
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
        """``in_flight`` requests all the time until ``over`` is set, or one of them fails; then none any more."""
        self._going = True
        for _ in range(in_flight):
            self._ask_again(next(self._sequences), first=True)
        try:
            await over.wait()
        finally:
            await self._end()

    async def open_loop(self, rate: float, seconds: float) -> MeasurementWindow:
        """Random arrivals of ``rate`` a second. Latency counts from when a request was due; one that is refused, fails
        or is not answered in :data:`_PATIENCE` seconds has an infinite one."""
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
            while (wait := due - time.monotonic_ns()) > 0:  # noqa: ASYNC110 - what is waited for is the time
                await asyncio.sleep(wait / 1e9)
            step = SequenceStep(next(self._sequences), start=True, end=True)
            self._put(_Reply(lambda error, due=due: ended(due, error)), due, step)  # type: ignore[misc]
        if dues:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await all_ended.wait()
        # What is left over would be in the way of whatever is measured next.
        self._dispatcher.abort(Cancelled(""))
        await self._dispatcher.drained()
        return MeasurementWindow(seconds, tuple(sorted(latencies)))

    async def _end(self) -> None:
        self._going = False
        await self._dispatcher.drained()
        # Sequences hold infer requests, which others will need.
        self._dispatcher.disconnected(self)

    async def _window(self, seconds: float, least: int) -> MeasurementWindow:
        self._latencies = []
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        await self._answers(least, seconds * (_MOST_STRETCH - 1))
        # Without any, a window would say nothing of the slowest models.
        await self._answers(min(least, 1), None)
        if self._failure is not None:
            raise self._failure
        return MeasurementWindow(time.monotonic() - begun, tuple(sorted(self._latencies)))

    async def _answers(self, wanted: int, seconds: float | None) -> None:
        """Wait until the window has so many, a request has failed, or ``seconds`` have passed."""
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
            # Not here: the dispatcher is in the middle of answering others.
            self._loop.call_soon(self._ask_again, sequence)

        self._put(_Reply(ended), asked, SequenceStep(sequence, start=first, owner=self))

    def _put(self, reply: _Reply, received: int, step: SequenceStep) -> None:
        inputs = next(self._samples)
        signature = self._traffic.signature
        request = synthetic_request(
            signature,
            inputs,
            reply,
            # Where the model keeps its state, one client is one sequence.
            step=step if signature.stateful else None,
            batch_key=signature.batch_key(inputs) if self._traffic.dynamic_batching else None,
            received=received,
            shadow=False,
        )
        try:
            self._dispatcher.submit(request)
        except InferdError as error:
            reply.fail(error)
