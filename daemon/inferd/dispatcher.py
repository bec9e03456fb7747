"""The asyncio shell around one model version's scheduler and pools.

It owns the loop side: the clock, one timer, and carrying out plans. All its methods run
on the event loop's thread; pools hand completions over through ``call_soon_threadsafe``.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from inferd.engine.device_loss import means_lost
from inferd.engine.dispatch_pool import DeviceStats, DispatchPool
from inferd.engine.pool import Completion, Pool
from inferd.engine.recovery import Recovery
from inferd.engine.shape_check import ShapeCheck
from inferd.engine.slot import RunFailed
from inferd.errors import (
    Cancelled,
    DeadlinePassed,
    InferdError,
    InferenceFailed,
    InternalFault,
    ModelUnavailable,
)
from inferd.requests import Observation, Request, Samples
from inferd.scheduling.entry import Entry, Run, SequenceState
from inferd.scheduling.hangs import HungSlots
from inferd.scheduling.plan import Plan
from inferd.scheduling.rules import PoolSpec, SchedulerRules
from inferd.scheduling.scheduler import Scheduler
from inferd.tensors import StateLink, Tensor

log = structlog.get_logger("inferd.dispatcher")

# How much earlier than the server a client may see the deadline that both know.
_CLIENT_DEADLINE_LEAD_NS = 10_000_000

# Inline runs may hold up everything else for so long at a time.
_INLINE_NS = 1_000_000

Observer = Callable[[Observation], None]

# The members of an ended run that still waited, and their error.
_Over = list[tuple[Request, InferdError | None]]


@dataclass(frozen=True, slots=True)
class DispatchedModel:
    """A model version as its dispatcher knows it: ``states`` are the tensors to carry from one request of a sequence to
    the next, ``shapes`` tells which input shapes the model can't take."""

    name: str
    version: int
    states: Sequence[StateLink] = ()
    shapes: ShapeCheck | None = None


class Dispatcher:
    """Takes requests of one model version, runs them, and ends each exactly once; made on the event loop.

    ``samples`` are recent inputs; ``on_observation`` may be set to receive every observation, those of requests
    refused on arrival included.
    ``scheduler`` is read-only for others: only the dispatcher may change it.
    ``device_stats`` has the counts of each device; ``on_health_change`` may be set to learn at once that a run hung,
    that its infer request can be used again, or that a device was lost.
    """

    def __init__(
        self,
        model: DispatchedModel,
        rules: SchedulerRules,
        dispatch_pools: Sequence[DispatchPool],
        *,
        observe: Observer,
    ) -> None:
        self._model = model.name
        self._version = str(model.version)
        self._pools = tuple(s.pool for s in dispatch_pools)
        self._inline = tuple(i for i, pool in enumerate(self._pools) if pool.inline)
        self._shares = tuple(s.share for s in dispatch_pools if s.share is not None)
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._states = tuple(model.states)
        self.samples = Samples()
        self.on_observation: Observer | None = None
        self.device_stats = tuple(DeviceStats(pool.device) for pool in self._pools)
        self.on_health_change: Callable[[], None] | None = None
        self._until_sample = 0
        self._busy_ns = 0
        self._pinned = rules.pinned
        self.scheduler = Scheduler(
            model.name, rules, [PoolSpec(s.pool.size, s.pool.width, s.share) for s in dispatch_pools]
        )
        labels: dict[str, object] = {"model": model.name, "version": model.version}
        self._recovery = Recovery(labels, self._pools, self.scheduler, shapes=model.shapes)
        self._sweeps = self._recovery.sweeps
        self._hung_slots = HungSlots(pool.width for pool in self._pools)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._closed = False
        # Closed, or without one of its devices.
        self._impaired = False
        self._idle = asyncio.Event()
        self._idle.set()
        for index, dispatch_pool in enumerate(dispatch_pools):
            self.scheduler.seed(index, dispatch_pool.times)
            dispatch_pool.pool.attach(partial(self._loop.call_soon_threadsafe, self._completed, index))
        for share in self._shares:
            share.wake = self._woken

    @property
    def busy_ns(self) -> int:
        """Nanoseconds that infer requests were in use since the start, summed over all of them."""
        return self._busy_ns

    @property
    def completed(self) -> int:
        """Runs that ended well since the start, whether or not a client still waited."""
        return sum(stats.succeeded for stats in self.device_stats)

    @property
    def stalled(self) -> float | None:
        """Seconds for which hung runs have held every infer request; None while something can run, and if no device is
        left."""
        since = self._hung_slots.since
        return None if since is None else max(0, time.monotonic_ns() - since) / 1e9

    @property
    def width(self) -> int:
        """How many runs may be in flight at a time."""
        return sum(pool.width for pool in self._pools)

    def submit(self, request: Request) -> None:
        """Take ``request``; its reply slot is filled later, exactly once.

        Raises what :meth:`Scheduler.submit` raises, and ModelUnavailable if no device is left or the dispatcher is
        closed; then nothing is kept and nothing recorded.
        """
        if self._impaired and (unavailable := self._unavailable()) is not None:
            raise unavailable
        now = time.monotonic_ns()
        request.stages.queued = now
        if self._recovery.alert and (known := self._recovery.known_failure(request, now)) is not None:
            self._fail(request, known.bare())
            return
        if self._inline and self.scheduler.can_run_inline(request, now):
            self._run_at_once(request, now)
            return
        try:
            self.scheduler.submit(request, now)
            self._idle.clear()
            self._until_sample -= 1
            if self._until_sample < 0:
                self._until_sample = self.samples.offer(request)
        except InferdError as error:
            if self.on_observation is not None and not request.shadow:
                self.on_observation(Observation(self._model, self._version, error.outcome, request.stages, error=error))
            raise
        finally:
            # Even if it was refused: other requests may have been evicted to make room.
            self._advance(now)

    def refusal_unread(self, stranger: Request) -> InferdError | None:
        """As :meth:`Scheduler.refusal_unread`; None as well while the dispatcher has a better reason to refuse."""
        return None if self._impaired else self.scheduler.refusal_unread(stranger, time.monotonic_ns())

    def disconnected(self, owner: object) -> None:
        """The connection ``owner`` is gone: end its sequences."""
        now = time.monotonic_ns()
        self.scheduler.disconnected(owner, now)
        self._advance(now)

    def cancel(self, request: Request) -> None:
        """The client went away: waiting work is dropped, running work cancelled. Harmless when it has ended."""
        now = time.monotonic_ns()
        if self.scheduler.cancel(request, now):
            # A client whose deadline passes cancels on its side, a moment before the deadline passes here.
            expired = request.deadline is not None and request.deadline - now < _CLIENT_DEADLINE_LEAD_NS
            error = DeadlinePassed(self._model, "in flight", "client") if expired else Cancelled(self._model)
            self._record(request, error)
            self._advance(now)

    async def drained(self) -> None:
        """Return once nothing waits and nothing runs."""
        await self._idle.wait()

    def abort(self, error: InferdError) -> None:
        """Answer every remaining request with ``error``, and cancel their runs."""
        now = time.monotonic_ns()
        for request in self.scheduler.requests():
            if self.scheduler.cancel(request, now):
                self._fail(request, error)
        self._advance(now)

    def disable_device(self, index: int, why: str) -> None:
        """Run nothing more on that lost device. Once no device is left, waiting requests are answered UNAVAILABLE.

        Harmless if it is disabled already.
        """
        stats = self.device_stats[index]
        if stats.lost:
            return
        stats.lost = why
        self._impaired = True
        log.error("device disabled", model=self._model, version=self._version, device=stats.device, problem=why)
        now = time.monotonic_ns()
        self.scheduler.disable(index, now)
        self._hung_slots.disable(index, now)
        self._loop.call_soon(self._after_loss)

    def close(self) -> None:
        """Stop watching the pools: the caller is about to end their runs."""
        if self._closed:
            return
        self._closed = self._impaired = True
        for share in self._shares:
            share.leave()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- carrying out plans -------------------------------------------------------

    def _advance(self, now: int) -> None:
        """Carry out plans until all starts of one have begun and all inline runs have ended."""
        over: list[_Over] = []
        until = now + _INLINE_NS
        while True:
            plan = self.scheduler.poll(now)
            for request, error in plan.refused:
                self._fail(request, error)
            for run in plan.given_up:
                self._hung(run)
            for pool, slot in plan.cancels:
                self._pools[pool].cancel(slot, hangs=bool(plan.given_up))
                self._sweeps.soon()
            for pool, slot in plan.replaced:
                if not self._pools[pool].replace(slot):
                    self._wedged(pool, slot)
            began = True
            for run in plan.starts:
                began = self._start(run) and began
            if self._inline and plan.starts:
                over += [self._end(index, one) for index in self._inline for one in self._pools[index].drain()]
            elif began:
                break
            if self.scheduler.quiescent:
                break
            now = time.monotonic_ns()
            if over and now > until:
                self._woken()
                break
        self._arm(now, plan)
        if self.scheduler.idle:
            self._idle.set()
        for ended in over:
            self._note(ended)

    def _run_at_once(self, request: Request, now: int) -> None:
        """Run a request inline from start to end, while no other request waits or runs."""
        pool, stages = self._pools[0], request.stages
        request.device, stages.started = pool.device, now
        self._until_sample -= 1
        if self._until_sample < 0:
            self._until_sample = self.samples.offer(request)
        failed, into = None, request.into if request.shared or request.into else None
        try:
            stages.submitted, ended = pool.run(request.inputs, into)
        except RunFailed as failure:
            self.device_stats[0].failed += 1
            failed = self._failed(0, str(failure))
        except InferdError as gone:
            failed = gone.bare()
        except Exception:
            log.exception("run not started", model=self._model, version=self._version)
            failed = InternalFault()
        if failed is not None:
            pool.release(0)
            self._fail(request, self._recovery.blame(0, request, failed))
            self._mend(0)
            return
        stages.computed = stages.taken = ended
        self.device_stats[0].succeeded += 1
        self._busy_ns += ended - now
        self.scheduler.record_inline(request, now, ended)
        error = self._reply(request, pool, 0)
        if into is not None:
            pool.release(0)
        for share in self._shares:
            share.wake_others(ended)
        self._record(request, error, request.rows)

    def _woken(self) -> None:
        self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        if not self._closed:
            self._advance(time.monotonic_ns())

    def _start(self, run: Run) -> bool:
        pool, now = self._pools[run.pool], time.monotonic_ns()
        inputs = []
        for entry in run.members:
            request = entry.request
            request.device, request.stages.started = pool.device, now
            inputs.append(request.inputs if entry.sequence is None else self._inputs(request, entry.sequence))
        first = run.members[0].request
        step = first.step
        into = None
        if (first.shared or first.into) and len(run.members) == 1:
            # A sequence's state must not lie in memory that a client can change.
            into = first.into if step is None else ()
        try:
            copied = pool.start(run.slot, inputs, fresh=self._pinned and step is not None and step.start, into=into)
            for entry in run.members:
                entry.request.stages.submitted = copied
            return True
        except RunFailed as failure:
            error = self._failed(run.pool, str(failure))
            self.device_stats[run.pool].failed += 1
        except InferdError as gone:
            # The client's shared memory is gone.
            error = gone.bare()
        except Exception:
            # No error of copying, such as running out of memory, may cost the slot.
            log.exception("run not started", model=self._model, version=self._version)
            error = InternalFault()
        pool.release(run.slot)
        lost = bool(self.device_stats[run.pool].lost)
        self._recovery.pause(run.pool, time.monotonic_ns())
        for entry in self.scheduler.finished(run.pool, run.slot, time.monotonic_ns(), ok=False, lost=lost):
            self._fail(entry.request, self._recovery.blame(run.pool, entry.request, error))
        self._mend(run.pool)
        return False

    def _mend(self, index: int) -> None:
        """Rebuild models that a run has left unfit."""
        self._recovery.pause(index, time.monotonic_ns())
        if index not in self._recovery.paused or self.device_stats[index].lost:
            return
        rebuild_error = self._recovery.proceed(index)
        if rebuild_error:
            self.disable_device(index, rebuild_error)
        elif rebuild_error is not None:
            self._advance(time.monotonic_ns())

    def _hung(self, run: Run) -> None:
        stats = self.device_stats[run.pool]
        stats.hung += 1
        self._hung_slots.add(run.pool, run.slot, time.monotonic_ns())
        log.error("run hung", model=self._model, version=self._version, device=stats.device, requests=len(run.members))
        self._report_health_change()

    def _wedged(self, index: int, slot: int) -> None:
        """A slot is gone for good; once all are, so is the device."""
        pool, stats = self._pools[index], self.device_stats[index]
        wedged = pool.wedged
        if not stats.wedged:
            stats.wedged = wedged[slot]
            log.error(
                "infer request not replaced",
                model=self._model,
                version=self._version,
                device=stats.device,
                problem=stats.wedged,
            )
            self._report_health_change()
        if len(wedged) >= pool.width:
            self.disable_device(index, stats.wedged)

    def _back(self, index: int, completion: Completion) -> None:
        """A run has ended or was orphaned, while others hang."""
        self.device_stats[index].replaced += completion.replaced
        if self._hung_slots.release(index, completion.slot, completion.at):
            self._report_health_change()

    def _report_health_change(self) -> None:
        """Pump again once the current callback is done."""
        if self.on_health_change is not None:
            self._loop.call_soon(self.on_health_change)

    def _failed(self, index: int, failure: str) -> InferdError:
        """The error for requests whose run failed on that device."""
        if means_lost(failure):
            self.disable_device(index, failure)
        if lost := self.device_stats[index].lost:
            return ModelUnavailable(self._model, "failed", f"{self.device_stats[index].device}: {lost}")
        return InferenceFailed(self._model, failure)

    def _after_loss(self) -> None:
        if self._closed:
            return
        unavailable = self._unavailable()
        if unavailable is not None:
            self.abort(unavailable)
        else:
            self._advance(time.monotonic_ns())
        if self.on_health_change is not None:
            self.on_health_change()

    def _unavailable(self) -> ModelUnavailable | None:
        """The error once no device is left, or the dispatcher is closed."""
        if self._closed:
            return ModelUnavailable(self._model, "unloaded")
        if not all(stats.lost for stats in self.device_stats):
            return None
        return ModelUnavailable(self._model, "failed", f"{self.device_stats[0].device}: {self.device_stats[0].lost}")

    def _inputs(self, request: Request, sequence: SequenceState) -> Sequence[Tensor]:
        """The request's inputs, with the current state of its sequence."""
        if sequence.carried is None or (request.step is not None and request.step.start):
            return request.inputs
        inputs = list(request.inputs)
        for link, tensor in zip(self._states, sequence.carried, strict=True):
            inputs[link.input] = tensor
        return inputs

    def _completed(self, index: int) -> None:
        if not self._closed:
            self._settle_all(index, self._pools[index].drain())

    def _settle_all(self, index: int, completions: Sequence[Completion]) -> None:
        if self._pools[index].tainted:
            # Before any of their slots becomes free.
            self._recovery.pause(index, time.monotonic_ns())
        for completion in completions:
            self._settle(index, completion)
        if self._recovery.paused:
            self._mend(index)

    def _settle(self, index: int, completion: Completion) -> None:
        """Answer, then refill the slot at once (streams starve in lock-step), then record."""
        ended = self._end(index, completion)
        self._advance(time.monotonic_ns())
        self._note(ended)

    def _end(self, index: int, completion: Completion) -> _Over:
        """Give the slot back and answer."""
        slot, at, failure, _, suspect = completion
        failed = None if failure is None else self._failed(index, failure)
        if self._hung_slots:
            self._back(index, completion)
        if suspect and failed is None:
            failed = InferenceFailed(self._model, "another request's failed run spoilt its result")
        stats, ok, pool = self.device_stats[index], failed is None, self._pools[index]
        ended = self.scheduler.finished(index, slot, at, ok=ok, lost=bool(stats.lost), suspect=suspect)
        stats.succeeded += ok
        stats.failed += not ok and bool(ended)
        if ended:
            self._busy_ns += at - ended[0].request.stages.started
        over: _Over = []
        for entry in ended:
            request, error = entry.request, failed
            request.stages.computed, request.stages.taken = at, time.monotonic_ns()
            if failed is None:
                error = self._reply(request, pool, slot, entry)
            else:
                error = failed if suspect else self._recovery.blame(index, request, failed)
                request.reply.fail(error)
            over.append((request, error))
        if pool.shared:
            pool.release(slot)
        return over

    def _note(self, ended: _Over) -> None:
        """Give other models their turn on the device, and record."""
        now = time.monotonic_ns()
        for share in self._shares:
            share.wake_others(now)
        if len(ended) == 1:
            self._record(*ended[0])
            return
        rows = sum(request.rows for request, _ in ended)
        for place, (request, error) in enumerate(ended):
            self._record(request, error, rows, leader=not place)

    def _reply(self, request: Request, pool: Pool, slot: int, entry: Entry | None = None) -> InferdError | None:
        """Answer with the outputs, and keep the sequence's state if the request belongs to an ``entry``."""
        try:
            if entry is not None and self._states:
                self._carry(entry, pool, slot)
            rows = None if entry is None else entry.rows
            request.reply.answer(pool.read(slot, request.outputs, rows, request.answer_limit))
            stages = request.stages
            stages.answered = time.monotonic_ns()
            stages.copied = stages.copied or stages.answered
            return None
        except InferdError as unfit:
            # The response does not fit where the client wants it.
            error = unfit.bare()
        except Exception:
            # No error of encoding may cost the slot.
            log.exception("response not encoded", model=self._model, version=self._version)
            error = InternalFault()
        request.reply.fail(error)
        return error

    def _carry(self, entry: Entry, pool: Pool, slot: int) -> None:
        """Keep the state for the sequence's next request."""
        sequence = entry.sequence
        if sequence is None or not sequence.live:
            return
        try:
            state = pool.read(slot, [link.output for link in self._states], entry.rows)
            sequence.carried = tuple([tensor.copied() for tensor in state])
        except BaseException:
            self.scheduler.invalidate(entry, time.monotonic_ns())
            raise

    def _fail(self, request: Request, error: InferdError) -> None:
        request.reply.fail(error)
        self._record(request, error)

    def _record(self, request: Request, error: InferdError | None, batch_rows: int = 0, *, leader: bool = True) -> None:
        stages = request.stages
        stages.answered = stages.answered or time.monotonic_ns()
        if request.shadow:
            return
        seen = Observation(
            self._model,
            self._version,
            "ok" if error is None else error.outcome,
            stages,
            request.device,
            request.id,
            request.rows,
            batch_rows or request.rows,
            leader,
            error,
            request.nbytes,
            request.answer_nbytes,
            request.trace,
        )
        self._observe(seen)
        if self.on_observation is not None:
            self.on_observation(seen)

    # -- the one timer ------------------------------------------------------------

    def _arm(self, now: int, plan: Plan) -> None:
        """Wake for the plan's time, and for the reaper while anything runs.

        A timer that is set for an earlier time is left to fire: resetting it on every
        request would cost more than one extra poll.
        """
        at = plan.wake_at
        if self.scheduler.running:
            sweep = now + self._sweeps.ns
            at = min(at, sweep) if at is not None else sweep
        if self._closed or at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0, at - now) / 1e9, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for index, pool in enumerate(self._pools):
            self._settle_all(index, pool.sweep())
        now = time.monotonic_ns()
        self._sweeps.looked(now)
        self._advance(now)
