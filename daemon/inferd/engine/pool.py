"""A pool of asynchronous infer requests on one device.

OpenVINO's own AsyncInferQueue loses slots on bad input, mixes results up and aborts the
process in ways that can't be worked around from outside (OpenVINO fact 1), so the pool is
inferd's own. The event loop's thread owns it; the device's callback thread does nothing
but stamp the time and hand over (OpenVINO fact 3).
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from threading import Lock, Thread
from typing import Any, NamedTuple

from inferd.engine.device_loss import means_lost
from inferd.engine.slot import RunFailed, Slot, SlotFactory, error_summary
from inferd.tensors import Placed, Tensor

# What closing waits for runs that were cancelled and do not end; longer than any one kernel should take.
_CLOSING_SECONDS = 10.0
# A new infer request is there in well under a millisecond, unless it waits for a stream that hangs (OpenVINO fact 35).
_MAKING_NS = 5_000_000_000


SlotRebuilder = Callable[[Any], Callable[[], tuple[SlotFactory, object]]]
"""Takes what it needs from a model that is about to be let go of, and returns what makes slots on another like it."""


class Rebuilding(NamedTuple):
    """How to move slots to a rebuilt model, and the nanoseconds that this is expected to take."""

    take: SlotRebuilder
    ns: int = 0


class Completion(NamedTuple):
    """A run that ended: at which time, and why it failed or None. ``replaced`` where it has not ended at all, but
    another infer request has taken the place of the one it is on. ``suspect`` where another run that failed may have
    spoilt it, however it ended. A tuple, because one is made for every run."""

    slot: int
    at: int
    failure: str | None
    replaced: bool = False
    suspect: bool = False


class PooledRequest:
    """An infer request and its present index in the pool. The number of its run tells a hand-over that arrives after
    the run was swept, or left behind, from the next one's."""

    def __init__(self, index: int, model: object) -> None:
        self.index = index
        self.run = 0
        self.begun = 0
        # Has to outlive the slot: freeing it last is what keeps that from hanging (OpenVINO fact 24).
        self.model = model
        self.slot: Slot

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether its run is over, however it ended; waits ``seconds`` for that."""
        try:
            return self.slot.wait(seconds) if seconds else self.slot.poll()
        except RunFailed:
            return True


class Pool:
    """Slots of one device; the scheduler decides which is free, the pool runs them.

    ``start``, ``cancel``, ``replace``, ``read``, ``release``, ``drain``, ``sweep`` and ``rebuild`` belong to one
    thread.

    Where a run that ends early leaves its mark on the model (``inferd.engine.rebuild``), the pool is ``tainted`` by it:
    nothing may be started until all slots are on another model, which :meth:`rebuild` sees to; :attr:`rebuild_error`
    says why that did not succeed.
    """

    def __init__(
        self,
        device: str,
        size: int,
        make_slot: SlotFactory,
        *,
        model: object = None,
        width: int | None = None,
        inline: bool = False,
        rebuild: Rebuilding | None = None,
    ) -> None:
        """``model`` is what the slots run; it is freed only after all of them.

        What ``make_slot`` raises is passed on; the slots made until then are freed.
        ``width`` is how many runs the device does well side by side, all slots if None.
        Where slots run ``inline``, a run has ended when :meth:`start` returns, without a notification.
        ``rebuild`` is given where a failed run leaves the model unfit.
        """
        self.device = device
        self.inline = inline
        self.size = size
        self.width = width or size
        self._make_slot: SlotFactory | None = make_slot
        self._model = model
        self._requests: list[PooledRequest] = []
        self._in_flight: set[int] = set()
        # The slots to give back a client's memory.
        self.shared: set[int] = set()
        self._handed_over: deque[tuple[PooledRequest, int, int]] = deque()
        # Runs that do not end, on infer requests that others have replaced; and such that did end after all.
        self._orphans: list[PooledRequest] = []
        self._spare: list[PooledRequest] = []
        # Since when a new infer request is being made for a place, what became of it, and why there is to be none.
        self._making: dict[int, int] = {}
        self._made: deque[tuple[int, PooledRequest | str]] = deque()
        self._refusals: dict[int, str] = {}
        self._rebuild = rebuild.take if rebuild is not None else None
        self._rebuild_ns = rebuild.ns if rebuild is not None else 0
        self.tainted = False
        self.rebuilds = 0
        self.rebuild_error = ""
        self._rebuilding: Thread | None = None
        self._rebuilt: deque[tuple[SlotFactory, object, list[PooledRequest]] | str] = deque()
        # Slots whose runs no client waits for, to be cancelled once that is worth a renewal.
        self._abandoned: set[int] = set()
        self._closing = Lock()
        self._closed = False
        self._signalled = False
        self._notify: Callable[[], object] = lambda: None
        try:
            for index in range(size):
                self._requests.append(self._make(index))
        except BaseException:
            self.close()
            raise

    @property
    def in_flight(self) -> int:
        """Runs that have not ended, without orphaned ones."""
        return len(self._in_flight)

    @property
    def orphaned(self) -> int:
        """Orphaned runs: hung runs whose infer request was replaced."""
        return len(self._orphans)

    @property
    def freed(self) -> bool:
        """Whether :meth:`close` has freed everything."""
        return self._closed and self._make_slot is None and self._rebuilding is None

    @property
    def wedged(self) -> dict[int, str]:
        """The hung slots that can't be replaced, and why; nothing runs there any more."""
        now = time.monotonic_ns()
        stuck = {slot for slot, since in self._making.items() if now - since > _MAKING_NS}
        return self._refusals | dict.fromkeys(stuck, "a run hung, and so did replacing its infer request")

    def attach(self, notify: Callable[[], object]) -> None:
        """Have ``notify`` called, on any thread, when :meth:`drain` has something to give."""
        self._notify = notify

    def start(
        self,
        slot: int,
        members: Sequence[Sequence[Tensor]],
        *,
        fresh: bool = False,
        into: Sequence[tuple[int, Placed]] | None = None,
    ) -> int:
        """Copy the inputs of each member and begin a run, from the model's initial state if ``fresh``.

        With ``into``, a single member's memory may be used in place, also for those outputs, until :meth:`release`.
        Returns the time the copy was done; raises RunFailed, and what placed inputs raise.
        """
        request = self._requests[slot]
        try:
            if fresh:
                request.slot.reset()
            if into is None:
                request.slot.write(members)
            else:
                self.shared.add(slot)
                request.slot.write_shared(members[0], into)
        except (RuntimeError, ValueError) as error:
            raise _not_copied(error) from error
        request.begun = copied = time.monotonic_ns()
        request.run += 1
        try:
            request.slot.start()
        except RunFailed:
            self.tainted = self._rebuild is not None
            raise
        self._in_flight.add(slot)
        if self.inline:
            self._handed_over.append((request, request.run, time.monotonic_ns()))
        return copied

    def run(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]] | None = None) -> tuple[int, int]:
        """Where slots run inline: all of a run on the first, which nothing else may be in flight on; ``into`` as
        :meth:`start` has it.

        Returns the times when the copy was done and when the run had ended; :meth:`read` has what came out. Raises
        RunFailed, and what placed inputs raise.
        """
        slot = self._requests[0].slot
        try:
            if into is None:
                slot.write((inputs,))
            else:
                self.shared.add(0)
                slot.write_shared(inputs, into)
        except (RuntimeError, ValueError) as error:
            raise _not_copied(error) from error
        copied = time.monotonic_ns()
        try:
            slot.start()
        except RunFailed:
            self.tainted = self._rebuild is not None
            raise
        return copied, time.monotonic_ns()

    def release(self, slot: int) -> None:
        """Release the memory that the run on ``slot``, which has ended and was read, used in place."""
        if slot in self.shared:
            self.shared.discard(slot)
            self._requests[slot].slot.release()

    def cancel(self, slot: int, *, hangs: bool = False) -> None:
        """Ask the run on ``slot`` to end; it is reported like any other once it has.

        Where that mars the model, a run is only ended once it has gone on for as long as a renewal takes, unless it
        ``hangs``: most end sooner.
        """
        if slot not in self._in_flight:
            return
        if self._rebuild is None or hangs or self._outlasts_rebuild(slot):
            _cancel(self._requests[slot])
        else:
            self._abandoned.add(slot)

    def replace(self, slot: int) -> bool:
        """Replace the infer request of ``slot``, whose run hangs.

        That run is then reported as ended, and orphaned. Call this again until then. False if it can't be replaced
        (:attr:`wedged` says why): as many runs are orphaned as there are slots, or making another infer request fails
        or takes too long.
        """
        if slot not in self._in_flight:
            return True
        if slot not in self._making and len(self._orphans) + len(self._making) >= self.size:
            self._refusals[slot] = f"{len(self._orphans)} hung infer requests were orphaned, the most allowed"
        if slot in self._making or slot in self._refusals:
            return slot not in self.wedged
        self._making[slot] = time.monotonic_ns()
        if self._spare:
            self._offer(slot, self._spare.pop())
        else:
            # A daemon, so that one that never returns does not keep the process from ending.
            Thread(target=self._make_another, args=(slot,), name="inferd-replace", daemon=True).start()
        return True

    def read(self, slot: int, outputs: Sequence[int], rows: range | None = None) -> list[Tensor]:
        """Outputs of the run that ended on ``slot``, or ``rows`` of them; valid until the next start there."""
        return self._requests[slot].slot.read(outputs, rows)

    def drain(self) -> list[Completion]:
        """The runs that ended well since the last call, and those whose slot was replaced, each once."""
        self._signalled = False
        ended = []
        while self._handed_over:
            request, run, at = self._handed_over.popleft()
            if request.index in self._in_flight and request is self._requests[request.index] and run == request.run:
                self._over(request.index)
                ended.append(Completion(request.index, at, None))
        if self._rebuild is not None and (self.tainted or (ended and self._in_flight)):
            ended = self._with_failed(ended)
        if self._rebuilt:
            self._put_rebuilt()
        while self._made:
            slot, made = self._made.popleft()
            if (completion := self._put_in_place(slot, made)) is not None:
                ended.append(completion)
        return ended

    def sweep(self) -> list[Completion]:
        """The reaper: runs that ended without a callback, because they failed or were cancelled."""
        ended = self.drain()
        well, failed = self._polled()
        if self._rebuild is not None and (failed or self.tainted):
            ended = self._suspected(ended + well, failed)
        else:
            ended += [*well, *failed]
        for slot in tuple(self._abandoned):
            if self._outlasts_rebuild(slot):
                self._abandoned.discard(slot)
                _cancel(self._requests[slot])
        if self._orphans:
            self._reclaim()
        return ended

    def rebuild(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Move all slots to a rebuilt model; nothing may be in flight.

        Works on a thread, which does ``meanwhile`` first. It notifies as :meth:`attach` says, and :meth:`drain` puts
        the slots in place. Harmless while it is in progress, or if there is nothing to rebuild.
        """
        if self._rebuild is None or not self.tainted or self._rebuilding is not None or self._closed:
            return
        old = [*self._requests, *self._spare]
        self._requests.clear()
        self._spare.clear()
        # A list, to be emptied: the thread itself keeps what it is given to its end.
        models, self._model, self._make_slot = [self._model], None, None
        work = (self._rebuild, models, old, meanwhile)
        self._rebuilding = Thread(target=self._make_rebuilt, args=work, name="inferd-renew", daemon=True)
        self._rebuilding.start()

    def rebuild_now(self) -> None:
        """The same at once, before the pool is attached to anything. Raises RuntimeError."""
        self.rebuild()
        if self._rebuilding is not None:
            self._rebuilding.join()
        self.drain()
        if self.rebuild_error:
            raise RuntimeError(self.rebuild_error)

    @property
    def rebuilding(self) -> bool:
        """Whether :meth:`rebuild` is in progress."""
        return self._rebuilding is not None

    def close(self, seconds: float = _CLOSING_SECONDS) -> bool:
        """Cancel and wait for what is in flight, then free the slots; nothing can be started after.

        Leaving the interpreter with a run in flight would abort it. The slots go because
        each infer request holds, in C++ where no garbage collector looks, a callback that
        leads back to this pool: without it neither would ever be freed. False where a run has not ended within
        ``seconds``: all is freed if it ever does.
        """
        with self._closing:
            if self._closed:
                return self.freed
            self._closed = True
            made = [request for _, request in self._made if isinstance(request, PooledRequest)]
            self._made.clear()
            made += [request for one in self._rebuilt if not isinstance(one, str) for request in one[2]]
            if self._rebuilt:
                self._rebuilt.clear()
                self._rebuilding = None
            rebuilding = self._rebuilding
        if rebuilding is not None:
            # It frees what it makes.
            rebuilding.join(seconds)
        busy = [*(self._requests[slot] for slot in sorted(self._in_flight)), *self._orphans]
        requests = [*self._requests, *self._orphans, *self._spare, *made]
        self._in_flight.clear()
        for mine in (self._requests, self._orphans, self._spare):
            mine.clear()
        for request in busy:
            _cancel(request)
        until = time.monotonic() + seconds
        hung = [request for request in busy if not request.ended(max(0.001, until - time.monotonic()))]
        if hung:
            Thread(target=self._free, args=(requests, hung), name="inferd-hung", daemon=True).start()
            return False
        self._free(requests)
        return self.freed

    def run_all(self, inputs: Sequence[Tensor]) -> float:
        """One run on every slot, as many side by side as the width is, for warm-up.

        Returns nanoseconds until all of the first that ran side by side ended. Raises RunFailed.
        """
        turns = [range(at, min(at + self.width, self.size)) for at in range(0, self.size, self.width)]
        took = [self._run_side_by_side(turn, inputs) for turn in turns]
        return took[0]

    def _run_side_by_side(self, slots: range, inputs: Sequence[Tensor]) -> float:
        begun = time.monotonic_ns()
        try:
            with ExitStack() as runs:
                # Takes back their hand-overs: the loop does not listen yet, and a pending signal would hide the next.
                runs.callback(self.drain)
                for request in self._requests[slots.start : slots.stop]:
                    request.slot.write([inputs])
                    request.slot.start()
                    runs.callback(request.slot.wait)
        except RunFailed:
            self.tainted = self._rebuild is not None
            raise
        return float(time.monotonic_ns() - begun)

    # -- telling what failed, and healing it --------------------------------------------

    def _polled(self) -> tuple[list[Completion], list[Completion]]:
        """The runs that have ended without a callback so far: those that ended well, and those that failed."""
        well, failed = [], []
        for slot in sorted(self._in_flight):
            try:
                if not self._requests[slot].slot.poll():
                    continue
                well.append(Completion(slot, time.monotonic_ns(), None))
            except RunFailed as error:
                failed.append(Completion(slot, time.monotonic_ns(), str(error)))
            self._over(slot)
        return well, failed

    def _with_failed(self, ended: list[Completion]) -> list[Completion]:
        """``ended`` well, with those that have failed: their callbacks would have come before (OpenVINO fact 3)."""
        well, failed = self._polled()
        if not failed and not self.tainted:
            return ended + well
        return self._suspected(ended + well, failed)

    def _suspected(self, well: list[Completion], failed: list[Completion]) -> list[Completion]:
        """All of them, doubted but for the one that failed first where that is known."""
        sure = len(failed) == 1 and not self.tainted
        self.tainted = True
        return [c._replace(suspect=True) for c in well] + [c._replace(suspect=not sure) for c in failed]

    def _outlasts_rebuild(self, slot: int) -> bool:
        return time.monotonic_ns() - self._requests[slot].begun >= self._rebuild_ns

    def _make_rebuilt(
        self, rebuild: SlotRebuilder, models: list[object], old: list[PooledRequest], meanwhile: Callable[[], object]
    ) -> None:
        """On a thread of its own."""
        begun = time.monotonic_ns()
        requests: list[PooledRequest] = []
        made: tuple[SlotFactory, object, list[PooledRequest]] | str
        try:
            meanwhile()
            states = {request.index: request.slot.state() for request in old}
            make = rebuild(models[0])
            # Both at a time would be twice the memory.
            _close(old)
            models.clear()
            make_slot, model = make()
            requests.extend(self._pooled(index, make_slot, model) for index in range(self.size))
            for request in requests:
                request.slot.resume(states.get(request.index, {}))
            made = make_slot, model, requests
        except Exception as error:
            # Memory running out, for one: to be told, as the slots are gone.
            made = error_summary(error)
            _close(old)
            _close(requests)
        self._rebuild_ns = time.monotonic_ns() - begun
        with self._closing:
            if not self._closed:
                self._rebuilt.append(made)
        if not self._closed:
            self._signal()
            return
        _close(requests)
        self._rebuilding = None

    def _put_rebuilt(self) -> None:
        made, self._rebuilding = self._rebuilt.popleft(), None
        if isinstance(made, str):
            self.rebuild_error = made
            return
        self._make_slot, self._model, self._requests = made
        self.tainted = False
        self.rebuilds += 1

    # -- replacing --------------------------------------------------------------------

    def _put_in_place(self, slot: int, made: PooledRequest | str) -> Completion | None:
        """The report on the run on ``slot``, now that its infer request was replaced or can't be."""
        del self._making[slot]
        if slot not in self._in_flight:
            # It has ended after all, just now.
            if isinstance(made, PooledRequest):
                self._spare.append(made)
            return None
        if isinstance(made, str):
            self._refusals[slot] = f"a run hung, and its infer request could not be replaced: {made}"
            return None
        self._over(slot)
        # That run was cancelled: it mars the model whenever it ends.
        self.tainted = self._rebuild is not None
        self._orphans.append(self._requests[slot])
        made.index, self._requests[slot] = slot, made
        return Completion(slot, time.monotonic_ns(), "the run was orphaned", replaced=True)

    def _reclaim(self) -> None:
        """Keep the infer requests whose runs have ended after all, to replace others with."""
        for request in [request for request in self._orphans if request.ended()]:
            request.slot.release()
            self._orphans.remove(request)
            if self._rebuild is None:
                self._spare.append(request)
            else:
                request.slot.close()

    def _over(self, slot: int) -> None:
        self._in_flight.discard(slot)
        self._abandoned.discard(slot)
        self._refusals.pop(slot, None)

    def _make(self, index: int) -> PooledRequest:
        make_slot, model = self._make_slot, self._model
        if make_slot is None:
            raise RuntimeError("the pool is closed")
        return self._pooled(index, make_slot, model)

    def _pooled(self, index: int, make_slot: SlotFactory, model: object) -> PooledRequest:
        request = PooledRequest(index, model)
        request.slot = make_slot(self._completion_of(request))
        return request

    def _make_another(self, index: int) -> None:
        """On a thread of its own: it may wait for a stream that hangs."""
        try:
            self._offer(index, self._make(index))
        except RuntimeError as error:
            self._offer(index, error_summary(error))

    def _offer(self, index: int, made: PooledRequest | str) -> None:
        with self._closing:
            if not self._closed:
                self._made.append((index, made))
                made = ""
        if isinstance(made, PooledRequest):
            made.slot.close()
        self._signal()

    def _free(self, requests: list[PooledRequest], hung: Sequence[PooledRequest] = ()) -> None:
        """Wait for the runs of the ``hung`` requests, close all slots, and release the model last."""
        for request in hung:
            with suppress(RunFailed):
                request.slot.wait()
        _close(requests)
        self._model = self._make_slot = None

    def _completion_of(self, request: PooledRequest) -> Callable[[], None]:
        def completed() -> None:
            self._handed_over.append((request, request.run, time.monotonic_ns()))
            self._signal()

        return completed

    def _signal(self) -> None:
        if not self._signalled:
            self._signalled = True
            # The loop may have closed under us; an exception here would end the process.
            try:  # noqa: SIM105 - at the end of every run: suppress() is three calls more
                self._notify()
            except RuntimeError:
                pass


def _close(requests: list[PooledRequest]) -> None:
    """Free them, each one's model after it."""
    while requests:
        requests.pop().slot.close()


def _not_copied(error: Exception) -> RunFailed:
    lost = f": {error_summary(error)}" if means_lost(str(error)) else ""
    return RunFailed(f"inputs could not be copied ({type(error).__name__}){lost}")


def _cancel(request: PooledRequest) -> None:
    # A device that is gone may refuse even that.
    with suppress(RuntimeError):
        request.slot.cancel()
