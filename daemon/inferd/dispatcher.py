"""The asyncio shell around one model version's scheduler and pools.

It owns the loop side: the clock, one timer, and carrying out plans. All its methods run
on the event loop's thread; pools hand completions over through ``call_soon_threadsafe``.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from inferd.engine.pool import Completion, Pool
from inferd.engine.slot import RunFailed
from inferd.errors import Cancelled, DeadlinePassed, InferdError, InferenceFailed, InternalFault
from inferd.requests import Observation, Request
from inferd.scheduling.scheduler import Limits, Plan, Scheduler, Start

log = structlog.get_logger("inferd.dispatcher")

# Failed and cancelled runs have no callback: this is how late such a one may be noticed.
SWEEP_NS = 20_000_000

# How much earlier than the server a client may see the deadline that both know.
_CLIENT_DEADLINE_LEAD_NS = 10_000_000

Observer = Callable[[Observation], None]


class Dispatcher:
    """Takes requests of one model version, runs them, and ends each exactly once.

    ``service_times`` are nanoseconds seen at warm-up, one a pool, 0 where unknown.
    """

    def __init__(
        self,
        model: str,
        version: int,
        limits: Limits,
        pools: Sequence[Pool],
        service_times: Sequence[float],
        observe: Observer,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._model = model
        self._version = str(version)
        self._pools = tuple(pools)
        self._observe = observe
        self._loop = loop
        self._scheduler = Scheduler(model, limits, [p.size for p in pools])
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        for index, (pool, seen) in enumerate(zip(pools, service_times, strict=True)):
            self._scheduler.seed(index, seen)
            pool.attach(partial(loop.call_soon_threadsafe, self._completed, index))

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return self._scheduler.waiting

    @property
    def running(self) -> int:
        """Infer requests in use."""
        return self._scheduler.running

    def submit(self, request: Request) -> None:
        """Take ``request``; its reply slot is filled later, exactly once.

        Raises DeadlinePassed or QueueFull instead, and then nothing is held and nothing recorded.
        """
        now = time.monotonic_ns()
        request.stages.queued = now
        self._scheduler.submit(request, now)
        self._idle.clear()
        self._advance(now)

    def cancel(self, request: Request) -> None:
        """The client went away: waiting work is dropped, running work cancelled. Harmless when it has ended."""
        if self._scheduler.cancel(request):
            now = time.monotonic_ns()
            # A client whose own deadline passes cancels on its side, a moment before ours passes here.
            expired = request.deadline is not None and request.deadline - now < _CLIENT_DEADLINE_LEAD_NS
            self._record(request, DeadlinePassed(self._model, "under way") if expired else Cancelled(self._model))
            self._advance(now)

    async def drained(self) -> None:
        """Return once nothing waits and nothing runs."""
        await self._idle.wait()

    def abort(self, error: InferdError) -> None:
        """Answer everything still here with ``error``, and cancel what runs."""
        for request in self._scheduler.requests():
            if self._scheduler.cancel(request):
                self._fail(request, error)
        self._advance(time.monotonic_ns())

    def close(self) -> None:
        """Look at the pools no more: whoever calls this is about to end what still runs there."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- carrying out plans -------------------------------------------------------

    def _advance(self, now: int) -> None:
        """Do what the scheduler says until a plan's starts all began."""
        while True:
            plan = self._scheduler.poll(now)
            for expired in plan.expired:
                self._fail(expired.request, DeadlinePassed(self._model, expired.stage))
            for pool, slot in plan.cancels:
                self._pools[pool].cancel(slot)
            began = [self._start(start) for start in plan.starts]
            if all(began):
                break
        self._arm(now, plan)
        if self._scheduler.idle:
            self._idle.set()

    def _start(self, start: Start) -> bool:
        request, pool = start.request, self._pools[start.pool]
        request.device = pool.device
        request.stages.started = time.monotonic_ns()
        try:
            request.stages.submitted = pool.start(start.slot, request.inputs)
            return True
        except RunFailed as failure:
            error: InferdError = InferenceFailed(self._model, str(failure))
        except Exception:
            # Whatever copying trips over, memory running out for one, must not take the slot with it.
            log.exception("run could not be started", model=self._model, version=self._version)
            error = InternalFault()
        self._scheduler.finished(start.pool, start.slot, time.monotonic_ns(), learn=False)
        self._fail(request, error)
        return False

    def _completed(self, index: int) -> None:
        if self._closed:
            return
        for completion in self._pools[index].drain():
            self._settle(index, completion)

    def _settle(self, index: int, completion: Completion) -> None:
        """Answer, then refill the slot at once (streams starve in lock-step), then record."""
        request = self._scheduler.finished(index, completion.slot, completion.at, completion.failure is None)
        error: InferdError | None = None
        if request is not None:
            request.stages.computed = completion.at
            error = self._answer(request, index, completion)
            request.stages.answered = time.monotonic_ns()
        self._advance(time.monotonic_ns())
        if request is not None:
            self._record(request, error)

    def _answer(self, request: Request, index: int, completion: Completion) -> InferdError | None:
        error: InferdError
        if completion.failure is not None:
            error = InferenceFailed(self._model, completion.failure)
        else:
            try:
                request.reply.answer(self._pools[index].read(completion.slot, request.outputs))
                return None
            except Exception:
                # Whatever encoding trips over must not take the slot with it.
                log.exception("answer could not be encoded", model=self._model, version=self._version)
                error = InternalFault()
        request.reply.fail(error)
        return error

    def _fail(self, request: Request, error: InferdError) -> None:
        request.reply.fail(error)
        self._record(request, error)

    def _record(self, request: Request, error: InferdError | None) -> None:
        stages = request.stages
        stages.answered = stages.answered or time.monotonic_ns()
        outcome = "ok" if error is None else error.outcome
        self._observe(
            Observation(self._model, self._version, outcome, stages, request.device, request.id, request.batch, error)
        )

    # -- the one timer ------------------------------------------------------------

    def _arm(self, now: int, plan: Plan) -> None:
        """Wake for the plan's time, and for the reaper while anything runs.

        A timer that is set for an earlier time is left to fire: resetting it on every
        request would cost more than one look too many.
        """
        at = plan.wake_at
        if self._scheduler.running:
            at = min(at, now + SWEEP_NS) if at is not None else now + SWEEP_NS
        if self._closed or at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0, at - now) / 1e9, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for index, pool in enumerate(self._pools):
            for completion in pool.sweep():
                self._settle(index, completion)
        self._advance(time.monotonic_ns())
