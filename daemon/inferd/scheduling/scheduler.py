"""The scheduler of one model version: a bounded queue in front of one or more pools.

A pure core. Requests enter through :meth:`Scheduler.submit` and leave by completion, cancel,
deadline or shedding. :meth:`Scheduler.poll` says what to do now: which requests to refuse,
which running work lost its clients, what to start where, and when to poll again. Times
are integer nanoseconds of one clock that only the caller knows.
"""

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

from inferd.errors import DeadlinePassed, Evicted, InferdError, InferenceFailed, QueueFull, QuotaExceeded, SequenceLost
from inferd.requests import Request
from inferd.scheduling.admission import Admission
from inferd.scheduling.batching import BatchSize
from inferd.scheduling.entry import Entry, EntryState, Run, SequenceState
from inferd.scheduling.fairness import LEAD, SharedDevice
from inferd.scheduling.forecast import Forecast
from inferd.scheduling.hangs import HangDetector
from inferd.scheduling.plan import Plan
from inferd.scheduling.pool_state import PoolState
from inferd.scheduling.queue import RequestQueue
from inferd.scheduling.queue_state import QueueState
from inferd.scheduling.quota import ClientQuota
from inferd.scheduling.rules import PoolSpec, SchedulerRules
from inferd.scheduling.sequences import Sequences
from inferd.scheduling.unread import UnreadCalls

# How far into the queue to look for batch members: requests with other keys lie between them.
_LOOK_AHEAD = 256


class Scheduler:
    """Decides what runs next, in which batch, and where; see the module's text."""

    def __init__(self, model: str, rules: SchedulerRules, pool_specs: Sequence[PoolSpec]) -> None:
        self._model = model
        self._rules = rules
        self._pools = [PoolState(spec.slots, spec.width or spec.slots) for spec in pool_specs]
        # The pools not disabled; and the indices of the pools neither disabled nor paused.
        self._open = list(self._pools)
        self._places = list(range(len(self._pools)))
        self._shares = [spec.share or SharedDevice().join(1.0, 1.0) for spec in pool_specs]
        self._queue = RequestQueue()
        self._size = BatchSize(rules.batch)
        self._forecast = Forecast(self._open, self._queue, self._size)
        self._admission = Admission(model, rules.objective, forecast=self._forecast, pools=self._open)
        self._quota = ClientQuota(rules.limits.per_client) if rules.limits.per_client is not None else None
        self._sequences = Sequences(model, rules.sequences) if rules.sequences else None
        self._hangs = HangDetector(rules.hangs)
        self._entries: dict[Request, Entry] = {}
        self._runs: dict[tuple[int, int], Run] = {}
        # Requests queued, and held behind an earlier request of the same sequence.
        self._waiting = 0
        self._waiting_bytes = 0
        # The heap outlives its entries, so it holds numbers: an ended request must not stay in memory.
        self._deadlines: list[tuple[int, int]] = []
        self._timed: dict[int, Entry] = {}
        self._cancels: list[tuple[int, int]] = []
        self._refused: list[tuple[Request, InferdError]] = []
        self._arrivals = 0
        self.unread = UnreadCalls()

    # -- events -------------------------------------------------------------------

    def seed(self, pool: int, times: Iterable[tuple[int, float]]) -> None:
        """Service times of ``pool`` measured before any request ran: rows of a run, nanoseconds."""
        for rows, duration in times:
            self._pools[pool].times.seed(rows, duration)

    def submit(self, request: Request, now: int) -> None:
        """Queue ``request``. Raises DeadlinePassed, a Refused, SequenceGone or SequenceLost, and then keeps nothing
        of it."""
        entry = Entry(request, self._arrivals, request.stages.received or now)
        self._admission.arrived(entry, now)
        self.unread.prioritised |= request.priority > 0
        self.unread.suspected = True
        self._admit(entry, now)
        self.unread.suspected = False
        self._arrivals += 1
        self._entries[request] = entry
        if self._quota is not None:
            self._quota.enter(request.client)
        self._waiting += 1
        self._waiting_bytes += request.held_nbytes
        if self._sequences is None or request.step is None or self._sequences.take(entry, request.step, now):
            self._queue.append(entry)
        if request.deadline is not None:
            self._timed[entry.arrival] = entry
            heappush(self._deadlines, (request.deadline, entry.arrival))

    def refusal_unread(self, stranger: Request, now: int) -> InferdError | None:
        """Why the request of a call would be refused whose message has not been received, None to receive it.

        ``stranger``, with the call's arrival and deadline, stands for it. A refused one counts as offered load."""
        if self._sequences is not None or self.unread.prioritised:
            return None
        entry = Entry(stranger, self._arrivals, stranger.stages.received)
        self._admission.place(entry, now)
        try:
            self._admit(entry, now)
        except InferdError as error:
            if self.unread.refuses():
                self._admission.offered(stranger.rows, entry.limit, now)
                return error.bare()
        return None

    def can_run_inline(self, request: Request, now: int) -> bool:
        """Whether ``request`` would start at once: a caller that runs it to its end before anything else happens only
        needs to call :meth:`record_inline`."""
        if self._entries or self._runs or self._sequences is not None or request.batch_key is not None:
            return False
        if len(self._pools) > 1 or not self._places or self._quota is not None:
            return False
        if (due := request.deadline) is not None and now + self._pools[0].fastest(request.rows, now) > due:
            return False
        return self._shares[0].may_start(now)

    def record_inline(self, request: Request, began: int, now: int) -> None:
        """``request`` has run successfully since ``began``, on the only pool, with no other request present."""
        share = self._shares[0]
        if share.contended:
            share.record_inline(began, now)
        pool = self._pools[0]
        pool.begun = began
        if not request.shadow:
            pool.times.learn(request.rows, now - began)
            if self._rules.objective is not None or request.deadline is not None:
                since = request.stages.received or began
                limit = self._admission.budget.limit(since, request.deadline)
                self._admission.answered(limit, now - since, request.rows)

    def cancel(self, request: Request, now: int) -> bool:
        """The client has left. False if the request had already ended; otherwise it counts as ended now."""
        entry = self._entries.get(request)
        if entry is None:
            return False
        self._forget(entry)
        self._withdraw(entry, "one of its requests was cancelled while running", now)
        return True

    def finished(
        self, pool: int, slot: int, now: int, *, ok: bool = True, lost: bool = False, suspect: bool = False
    ) -> list[Entry]:
        """``slot`` is free again. Returns the members to answer, whose clients still wait.

        Returns none after a failed run of several: each member is retried alone, so that one bad request does not fail
        its neighbours. Nor after a run ``lost`` with its device, if there is another device. Nor after a ``suspect``
        run, which another run may have corrupted, unless it has changed a state.
        """
        run = self._runs.pop((pool, slot))
        self._hangs.ended(run)
        again = not ok and (len(run.members) > 1 or (lost and bool(self._open)) or (suspect and not self._rules.pinned))
        answered, retried, kept = [], [], False
        # Its duration tells how long clients' requests take, unless it was cancelled or is a synthetic one.
        awaited = clients = False
        for entry in run.members:
            abandoned = entry.state is EntryState.ABANDONED
            awaited, clients = awaited or not abandoned, clients or not entry.request.shadow
            if again and not abandoned:
                retried.append(entry)
                continue
            entry.move(EntryState.ENDED)
            entry.run = None
            if not abandoned:
                self._forget(entry)
                answered.append(entry)
                if ok and entry.limit and not entry.request.shadow:
                    self._admission.answered(entry.limit, now - entry.since, entry.request.rows)
            if entry.sequence is not None:
                kept = self._after_run(entry, ok, now)
        self._pools[pool].release(slot, run.rows, now, learn=ok and awaited and clients, keep=kept)
        if self._pools[pool].paused:
            # In parallel, a second failure would again not tell which request is at fault.
            self._pools[pool].solo_runs += len(retried)
        self._shares[pool].ended(now)
        for entry in reversed(retried):
            self._retry(entry)
        return answered

    def disconnected(self, owner: object, now: int) -> None:
        """The connection of these sequences is closed: their states go with it."""
        if self._sequences is None:
            return
        for sequence in self._sequences.owned(owner):
            if sequence.current is None:
                self._sequences.leave(sequence)
                self._free_place(sequence)
            else:
                self._lose(sequence, "its stream ended", now)

    def invalidate(self, entry: Entry, now: int) -> None:
        """The state after the run of ``entry`` could not be kept."""
        if entry.sequence is not None:
            self._lose(entry.sequence, "its state could not be kept", now)

    def pause(self, pool: int, now: int) -> None:
        """Start nothing on ``pool`` until :meth:`resume`; requests that wait for it keep waiting."""
        self._pools[pool].paused = True
        self._regroup(pool, now)

    def resume(self, pool: int) -> None:
        """``pool`` can be used again."""
        self._pools[pool].paused = False
        self._regroup()

    def _regroup(self, pool: int | None = None, now: int = 0) -> None:
        self._open[:] = [p for p in self._pools if not p.disabled]
        self._places = [i for i, p in enumerate(self._pools) if not (p.disabled or p.paused)]
        if pool is not None:
            self._shares[pool].want(False, now)

    def disable(self, pool: int, now: int) -> None:
        """Start nothing more on ``pool``: its device is lost, and with it the sequences that live there."""
        self._pools[pool].disabled = True
        self._regroup(pool, now)
        for sequence in self._sequences.kept_on(pool) if self._sequences is not None else ():
            self._lose(sequence, "its device was lost", now)

    # -- decisions ----------------------------------------------------------------

    def poll(self, now: int) -> Plan:
        """What to do at ``now``. The scheduler counts the plan as done: its starts hold their slots.

        A slot that must be replaced is in every plan until its run has :meth:`finished`.
        """
        plan = Plan()
        if self._deadlines or self._sequences is not None:
            self._expire(now)
        if self._hangs.due is not None and now >= self._hangs.due:
            self._give_up(now, plan)
        self._fill(now, plan)
        if self._refused:
            plan.refused, self._refused = self._refused, []
        if self._cancels:
            plan.cancels, self._cancels = self._cancels, []
        if self._deadlines:
            plan.wake(self._deadlines[0][0])
        if self._hangs.due is not None:
            plan.wake(self._hangs.due)
        if self._sequences is not None and (due := self._sequences.next_expiry) is not None:
            plan.wake(due)
        return plan

    def _expire(self, now: int) -> None:
        heap = self._deadlines
        while heap and (heap[0][0] <= now or heap[0][1] not in self._timed):
            entry = self._timed.get(heappop(heap)[1])
            if entry is None:
                continue
            running = entry.state is EntryState.RUNNING
            stage, reason = ("running", "running") if running else ("waiting in the queue", "queue")
            error = DeadlinePassed(self._model, stage, reason)
            self._refuse(entry, error, now, "a request passed its deadline while running")
        # Ended requests leave their deadlines behind; keep those fewer than the live ones.
        if len(heap) > 2 * len(self._timed) + 64:
            heap[:] = [item for item in heap if item[1] in self._timed]
            heapify(heap)
        for sequence in self._sequences.expire(now) if self._sequences is not None else ():
            self._free_place(sequence)

    def _give_up(self, now: int, plan: Plan) -> None:
        """Give up the runs that should have ended long ago."""
        hung = self._hangs.look(now)
        plan.given_up, plan.replaced = hung.given_up, [(run.pool, run.slot) for run in hung.replaced]
        for run in hung.given_up:
            why = f"the run did not end within {self._hangs.took(run, now) / 1e9:.3g} s and was given up"
            for entry in run.members:
                if entry.state is EntryState.RUNNING:
                    self._refuse(entry, InferenceFailed(self._model, why), now, "one of its requests hung")

    def _fill(self, now: int, plan: Plan) -> None:
        """Give each free slot the first requests that would finish there soonest.

        Pools are considered from the fastest on. The requests at the head of the queue are left
        to faster pools if those will be done with them before this pool would be,
        so a slow device only gets what the fast one could not finish first.
        """
        order = self._places
        if len(order) > 1:
            order = sorted(order, key=lambda i: self._pools[i].times.expected(1))
        for rank, index in enumerate(order):
            pool, share = self._pools[index], self._shares[index]
            share.held_back, patient, ahead = False, False, 0
            while self._queue.length and pool.room > 0:
                if rank:
                    ahead = sum(self._pools[i].completions_within(pool.times.expected(1), now) for i in order[:rank])
                if ahead >= self._queue.length:
                    plan.wake(now + max(1, int(pool.times.expected(1))))
                    break
                entry = self._queue.first(ahead)
                if self._refuse_if_late(entry, pool, now):
                    continue
                members = self._form_batch(entry, pool, now, plan)
                if not members:
                    patient = True
                    break
                if not share.wants:
                    share.want(True, now)
                if not share.may_start(now):
                    # The model ahead reports when its run ends; if it hangs, the timer does.
                    plan.wake(now + LEAD)
                    break
                plan.starts += (self._start(index, members, now),)
                share.started(now)
            wants = self._queue.length > 0 and not patient
            if wants != share.wants:
                share.want(wants, now)

    def _refuse_if_late(self, entry: Entry, pool: PoolState, now: int) -> bool:
        """Refuse ``entry`` if running it would be useless: its response would come too late."""
        refusal = self._admission.late_refusal(entry, pool, now)
        if refusal is not None:
            self._refuse(entry, refusal, now)
        return refusal is not None

    def _form_batch(self, entry: Entry, pool: PoolState, now: int, plan: Plan) -> list[Entry]:
        """``entry`` and those that share its batch; empty while waiting for more is worth it."""
        key = entry.request.batch_key
        if key is None or entry.alone or self._rules.batch.max_rows < 2:
            return [entry]
        waiting = self._queue.rows(key)
        room = self._room(entry, pool, now)
        until = self._size.wait_to_fill(pool.times, waiting, entry.since, room)
        if until is not None and now < until:
            plan.wake(until)
            entry.held = entry.held or now
            return []
        size = self._size.choose(pool.times, waiting, pool.room, room)
        members, rows = [entry], entry.request.rows
        for other, _ in zip(self._queue, range(_LOOK_AHEAD), strict=False):
            if rows >= size:
                break
            if other is entry or not other.batches_with(entry):
                continue
            if rows + other.request.rows > size:
                break
            members.append(other)
            rows += other.request.rows
        return members

    def _room(self, entry: Entry, pool: PoolState, now: int) -> float | None:
        """How long a run with ``entry`` may take; None without a limit, or if it is too late to matter."""
        ends = [entry.request.deadline] if entry.request.deadline is not None else []
        if self._rules.objective is not None:
            ends.append(entry.since + self._rules.objective.latency)
        room = min(ends, default=0) - now
        return room if ends and room > pool.times.expected(entry.request.rows) else None

    def _start(self, index: int, members: list[Entry], now: int) -> Run:
        pool, sequence = self._pools[index], members[0].sequence
        if self._rules.pinned and sequence is not None and sequence.place is not None:
            slot = sequence.place[1]
            pool.resume(slot, now)
        else:
            slot = pool.occupy(now)
            if self._rules.pinned and sequence is not None:
                sequence.place = (index, slot)
        run = Run(index, slot, tuple(members), 0)
        held = members[0].held
        for entry in members:
            if held:
                # A request that arrived while the first waited to fill a batch has waited for nothing else.
                entry.request.stages.held = max(held, entry.request.stages.queued)
            self._queue.started(entry)
            self._waiting -= 1
            self._waiting_bytes -= entry.request.held_nbytes
            entry.move(EntryState.RUNNING)
            entry.run = run
            before, run.rows = run.rows, run.rows + entry.request.rows
            entry.rows = range(before, run.rows) if len(members) > 1 else None
        self._runs[index, slot] = run
        self._hangs.begun(run, pool.times, now)
        return run

    # -- admission ------------------------------------------------------------------

    def _admit(self, entry: Entry, now: int) -> None:
        """Raise the error that keeps the request from being accepted."""
        request, limits = entry.request, self._rules.limits
        if request.deadline is not None and request.deadline <= now:
            raise DeadlinePassed(self._model, "being received", "arrival")
        if self._sequences is not None and request.step is not None:
            self._sequences.check(request.step, now)
        if self._quota is not None and self._quota.exhausted(request.client):
            raise QuotaExceeded(
                self._model, request.client, self._quota.most, retry_after=self._forecast.turnaround() / 1e9
            )
        if (refusal := self._admission.refusal(entry, now)) is not None:
            raise refusal
        # Requests that could start at once left the queue at the last poll, so the limits only bind a real wait.
        while self._waiting >= limits.max_length:
            self._make_room(entry, f"{limits.max_length} requests waiting", now)
        while self._waiting and self._waiting_bytes + request.held_nbytes > limits.max_bytes:
            self._make_room(entry, f"{limits.max_bytes} bytes waiting", now)

    def _make_room(self, entry: Entry, limit: str, now: int) -> None:
        """Evict the entry that matters least; raises QueueFull if none matters less than ``entry``."""
        last = self._queue.last() if self._queue.length else None
        if last is None or last.level <= entry.level or last.sequence is not None:
            raise QueueFull(self._model, limit, self.backlog_seconds())
        self._refuse(last, Evicted(self._model, self.backlog_seconds()), now)

    # -- endings ----------------------------------------------------------------------

    def _refuse(self, entry: Entry, error: InferdError, now: int, why: str = "") -> None:
        """End ``entry`` with ``error``, at the next poll or in this one; ``why`` as for :meth:`_withdraw`."""
        self._forget(entry)
        self._refused.append((entry.request, error))
        self._withdraw(entry, why, now)

    def _forget(self, entry: Entry) -> None:
        """The request counts as ended; its run may continue."""
        request = entry.request
        del self._entries[request]
        if request.deadline is not None:
            self._timed.pop(entry.arrival, None)
        if self._quota is not None:
            self._quota.leave(request.client)

    def _withdraw(self, entry: Entry, why: str, now: int) -> None:
        """Remove ``entry`` wherever it is; ``why`` is why its sequence is lost if it was running."""
        if entry.state is EntryState.RUNNING:
            entry.move(EntryState.ABANDONED)
            if not entry.request.shadow:
                self._learn_from_abandoned(entry, now)
            if entry.run is not None and entry.run.abandoned:
                self._cancels.append((entry.run.pool, entry.run.slot))
            if entry.sequence is not None:
                self._lose(entry.sequence, why, now)
            return
        if entry.state is EntryState.WAITING:
            self._queue.drop(entry)
        self._waiting -= 1
        self._waiting_bytes -= entry.request.held_nbytes
        entry.move(EntryState.ENDED)
        if entry.sequence is not None:
            self._skipped(entry, entry.sequence, now)

    def _retry(self, entry: Entry) -> None:
        """The run failed, and the entry was not alone: try once more, by itself."""
        entry.run, entry.alone = None, True
        entry.move(EntryState.WAITING)
        self._waiting += 1
        self._waiting_bytes += entry.request.held_nbytes
        self._queue.append(entry)

    def _learn_from_abandoned(self, entry: Entry, now: int) -> None:
        """Learn that its run takes at least as long as it already has: if only finished runs counted, a model that
        became slow would be thought fast for ever."""
        if entry.limit:
            self._admission.abandoned(entry, now)
        if (run := entry.run) is not None and run.abandoned:
            pool = self._pools[run.pool]
            pool.times.learn_at_least(run.rows, now - pool.running[run.slot])

    # -- sequences --------------------------------------------------------------------

    def _after_run(self, entry: Entry, ok: bool, now: int) -> bool:
        """Let the next request of the sequence follow; True while the slot stays with it."""
        sequence = entry.sequence
        if self._sequences is None or sequence is None:
            return False
        if not sequence.live:
            self._sequences.part(sequence)
            sequence.place = None
            return False
        if not ok:
            # The slot is released with the run that ends here.
            sequence.place = None
            self._lose(sequence, "one of its requests failed", now)
            self._sequences.part(sequence)
            return False
        self._follow(entry, now)
        if not sequence.live:
            sequence.place = None
        return sequence.place is not None

    def _skipped(self, entry: Entry, sequence: SequenceState, now: int) -> None:
        """``entry`` left before it ran."""
        if self._sequences is None or not sequence.live:
            return
        if entry.request.step is not None and entry.request.step.start:
            if sequence.current is entry:
                sequence.current = None
            else:
                sequence.held.remove(entry)
            self._lose(sequence, "its first request did not run", now)
        else:
            self._follow(entry, now)
        if not sequence.live:
            self._free_place(sequence)

    def _follow(self, entry: Entry, now: int) -> None:
        follower = self._sequences.proceed(entry, now) if self._sequences is not None else None
        if follower is not None:
            follower.move(EntryState.WAITING)
            self._admission.ready(follower, now)
            self._queue.append(follower)

    def _lose(self, sequence: SequenceState, why: str, now: int) -> None:
        """End the requests that wait for a state that is lost."""
        if self._sequences is None or not sequence.live:
            return
        current = sequence.current
        orphans = self._sequences.lose(sequence, why)
        if current is not None and current.state is EntryState.WAITING:
            orphans.insert(0, current)
        for orphan in orphans:
            self._refuse(orphan, SequenceLost(self._model, sequence.id, why), now)
        if current is None or current.run is None:
            self._free_place(sequence)

    def _free_place(self, sequence: SequenceState) -> None:
        """Free the slot that was kept; a run that still uses it frees it when it ends."""
        if sequence.place is not None and sequence.place not in self._runs:
            pool, slot = sequence.place
            self._pools[pool].free.append(slot)
            sequence.place = None

    # -- state --------------------------------------------------------------------

    def requests(self) -> list[Request]:
        """Every request that has not ended, in order of arrival."""
        return list(self._entries)

    def queue_state(self, now: int) -> QueueState:
        """The load at ``now``. May be called on another thread."""
        oldest = self.oldest
        return QueueState(
            waiting=self._waiting,
            waiting_bytes=self._waiting_bytes,
            oldest=max(0, now - oldest) / 1e9 if oldest else 0.0,
            in_flight=self.in_flight,
            limit=self.limit,
            running=self.running,
            sequences=self.sequences,
        )

    @property
    def waiting(self) -> int:
        """Requests waiting to start."""
        return self._waiting

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the requests waiting to start."""
        return self._waiting_bytes

    @property
    def oldest(self) -> int:
        """When the oldest queued request arrived, 0 for none. May be called on another thread."""
        return self._queue.oldest

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._entries)

    @property
    def running(self) -> int:
        """Slots in use, including by abandoned work."""
        return len(self._runs)

    @property
    def service_time(self) -> float:
        """Nanoseconds that a run of one row takes on the fastest pool; 0 if unknown."""
        return min((p.times.expected(1) for p in self._open), default=0.0)

    @property
    def sequences(self) -> int:
        """Live sequences."""
        return self._sequences.count if self._sequences is not None else 0

    @property
    def limit(self) -> int:
        """How many requests may be in flight now: the learnt limit, otherwise the capacity of slots and queue."""
        return self._admission.in_flight_limit(sum(p.width for p in self._open), self._rules.limits.max_length)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._entries and not self._runs

    @property
    def quiescent(self) -> bool:
        """Whether it is idle and nothing depends on time: there is nothing to :meth:`poll` for."""
        return not self._entries and not self._runs and not (self._refused or self._cancels or self.sequences)

    def backlog_seconds(self) -> float:
        """Expected time until everything now queued has started, in seconds."""
        rate = self._forecast.rate()
        return self._waiting / rate / 1e9 if rate else 0.0
