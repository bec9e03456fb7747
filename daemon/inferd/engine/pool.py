"""A pool of asynchronous infer requests on one device.

OpenVINO's own AsyncInferQueue loses slots on bad input, mixes up results and aborts the process,
and none of that can be worked around from outside (OpenVINO fact 1). The event loop's thread owns
this pool; the device's callback thread only records the time and hands over (OpenVINO fact 3).
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from threading import Lock, Thread
from typing import Any, NamedTuple

from inferd.engine.device_loss import means_lost
from inferd.engine.slot import RunFailed, Slot, SlotFactory, error_summary
from inferd.requests import NO_LIMIT
from inferd.tensors import Placed, Tensor

# How long closing waits for cancelled runs; longer than any single kernel should take.
_CLOSING_SECONDS = 10.0
# Making an infer request takes well under a millisecond, unless it waits for a hung stream (OpenVINO fact 35).
_MAKING_NS = 5_000_000_000


SlotRebuilder = Callable[[Any], Callable[[], tuple[SlotFactory, object]]]
"""Takes what it needs from a model about to be freed, and returns a function that makes slots on a new one."""


class Rebuilding(NamedTuple):
    """How to move slots to a rebuilt model, and how many nanoseconds that should take."""

    take: SlotRebuilder
    ns: int = 0


class Completion(NamedTuple):
    """A run that ended: when, and why it failed or None. ``replaced`` if the run has not ended, but its infer request
    was replaced. ``suspect`` if another run that failed may have corrupted this one. A tuple, because every run makes
    one."""

    slot: int
    at: int
    failure: str | None
    replaced: bool = False
    suspect: bool = False


class PooledRequest:
    """An infer request and its present index in the pool. The run number identifies hand-overs that arrive after their
    run was swept or orphaned."""

    def __init__(self, index: int, model: object) -> None:
        self.index = index
        self.run = 0
        self.begun = 0
        # Must outlive the slot: freeing it first would hang (OpenVINO fact 24).
        self.model = model
        self.slot: Slot

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether its run is over, in success or failure; waits up to ``seconds`` for that."""
        try:
            return self.slot.wait(seconds) if seconds else self.slot.poll()
        except RunFailed:
            return True


class Pool:
    """Slots of one device; the scheduler decides which is free, the pool runs them.

    ``start``, ``cancel``, ``replace``, ``read``, ``release``, ``drain``, ``sweep`` and ``rebuild`` belong to one
    thread.

    A run that ends early may corrupt the model (``inferd.engine.rebuild``). The pool is then ``tainted``: nothing may
    start until :meth:`rebuild` has moved all slots to a new model; :attr:`rebuild_error` says why that failed.
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

        Errors of ``make_slot`` are passed on, and the slots made so far are freed.
        ``width`` is how many runs the device handles well in parallel, all slots if None.
        With ``inline``, a run has ended when :meth:`start` returns, without a notification.
        ``rebuild`` is given if a failed run taints the model.
        """
        self.device = device
        self.inline = inline
        self.size = size
        self.width = width or size
        self._make_slot: SlotFactory | None = make_slot
        self._model = model
        self._requests: list[PooledRequest] = []
        self._in_flight: set[int] = set()
        # The slots that use a client's memory.
        self.shared: set[int] = set()
        self._handed_over: deque[tuple[PooledRequest, int, int]] = deque()
        # Hung runs whose infer requests were replaced; spare infer requests whose hung run ended after all.
        self._orphans: list[PooledRequest] = []
        self._spare: list[PooledRequest] = []
        # By slot: when making a new infer request began, the result, and why there will be none.
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
        # Slots whose runs no client waits for, to be cancelled once a run outlasts a rebuild.
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
        """Have ``notify`` called, on any thread, when :meth:`drain` has something to return."""
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

        With ``into``, the memory of a single member may be used in place, also for those outputs, until
        :meth:`release`. Returns the time the copy was done; raises RunFailed, and errors of placed inputs.
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
        """Inline only: a whole run on the first slot, while no other is in flight; ``into`` as for :meth:`start`.

        Returns the times when the copy was done and when the run ended; :meth:`read` returns its outputs. Raises
        RunFailed, and errors of placed inputs.
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
        """Release the client's memory that the run on ``slot`` used in place; the run has ended and was read."""
        if slot in self.shared:
            self.shared.discard(slot)
            self._requests[slot].slot.release()

    def cancel(self, slot: int, *, hangs: bool = False) -> None:
        """Ask the run on ``slot`` to end; its end is then reported as usual.

        If cancelling would taint the model, a run is only cancelled once it outlasts a rebuild, unless it ``hangs``:
        most end sooner.
        """
        if slot not in self._in_flight:
            return
        if self._rebuild is None or hangs or self._outlasts_rebuild(slot):
            _cancel(self._requests[slot])
        else:
            self._abandoned.add(slot)

    def replace(self, slot: int) -> bool:
        """Replace the infer request of ``slot``, whose run hangs.

        The run is then reported as ended, and orphaned; until then, call this again. False if it can't be replaced
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
            # A daemon thread, so that one that never returns does not keep the process from ending.
            Thread(target=self._make_another, args=(slot,), name="inferd-replace", daemon=True).start()
        return True

    def read(self, slot: int, outputs: Sequence[int], rows: range | None = None, most: int = NO_LIMIT) -> list[Tensor]:
        """Outputs of the run that ended on ``slot``, or ``rows`` of them; valid until the next start there. Raises
        ResponseTooLarge if they have more than ``most`` bytes."""
        return self._requests[slot].slot.read(outputs, rows, most)

    def drain(self) -> list[Completion]:
        """The runs that succeeded since the last call, and those whose slot was replaced, each once."""
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

        Works on a thread, which calls ``meanwhile`` first. When done it notifies as for :meth:`attach`, and
        :meth:`drain` puts the slots in place. Harmless while it is in progress, or if there is nothing to rebuild.
        """
        if self._rebuild is None or not self.tainted or self._rebuilding is not None or self._closed:
            return
        old = [*self._requests, *self._spare]
        self._requests.clear()
        self._spare.clear()
        # A list that the thread can empty, as it would hold its arguments to its end.
        models, self._model, self._make_slot = [self._model], None, None
        work = (self._rebuild, models, old, meanwhile)
        self._rebuilding = Thread(target=self._make_rebuilt, args=work, name="inferd-renew", daemon=True)
        self._rebuilding.start()

    def rebuild_now(self) -> None:
        """Rebuild synchronously, before the pool is attached. Raises RuntimeError."""
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
        """Cancel the runs in flight, wait for them, then free the slots; nothing can be started afterwards.

        If the interpreter exits with a run in flight, it aborts. The slots must be freed because each infer request
        holds a callback in C++, invisible to the garbage collector, that refers to this pool. False if a run has not
        ended within ``seconds``: everything is freed if it ever does.
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
            # The thread frees what it makes.
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
        """One run on every slot, in parallel up to the pool's width, for warm-up.

        Returns the nanoseconds that the first parallel runs took. Raises RunFailed.
        """
        turns = [range(at, min(at + self.width, self.size)) for at in range(0, self.size, self.width)]
        took = [self._run_side_by_side(turn, inputs) for turn in turns]
        return took[0]

    def _run_side_by_side(self, slots: range, inputs: Sequence[Tensor]) -> float:
        begun = time.monotonic_ns()
        try:
            with ExitStack() as runs:
                # Collect their hand-overs: the loop does not listen yet, and a pending signal would hide the next one.
                runs.callback(self.drain)
                for request in self._requests[slots.start : slots.stop]:
                    request.slot.write([inputs])
                    request.slot.start()
                    runs.callback(request.slot.wait)
        except RunFailed:
            self.tainted = self._rebuild is not None
            raise
        return float(time.monotonic_ns() - begun)

    # -- failures and rebuilding --------------------------------------------------------

    def _polled(self) -> tuple[list[Completion], list[Completion]]:
        """The runs that have ended without a callback so far: successes and failures."""
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
        """``ended`` successfully, plus failed runs: their callbacks would have come first (OpenVINO fact 3)."""
        well, failed = self._polled()
        if not failed and not self.tainted:
            return ended + well
        return self._suspected(ended + well, failed)

    def _suspected(self, well: list[Completion], failed: list[Completion]) -> list[Completion]:
        """All of them, marked as suspect except the first failure, if that is known."""
        sure = len(failed) == 1 and not self.tainted
        self.tainted = True
        return [c._replace(suspect=True) for c in well] + [c._replace(suspect=not sure) for c in failed]

    def _outlasts_rebuild(self, slot: int) -> bool:
        return time.monotonic_ns() - self._requests[slot].begun >= self._rebuild_ns

    def _make_rebuilt(
        self, rebuild: SlotRebuilder, models: list[object], old: list[PooledRequest], meanwhile: Callable[[], object]
    ) -> None:
        """Runs on its own thread."""
        begun = time.monotonic_ns()
        requests: list[PooledRequest] = []
        made: tuple[SlotFactory, object, list[PooledRequest]] | str
        try:
            meanwhile()
            states = {request.index: request.slot.state() for request in old}
            make = rebuild(models[0])
            # Both models at a time would take twice the memory.
            _close(old)
            models.clear()
            make_slot, model = make()
            requests.extend(self._pooled(index, make_slot, model) for index in range(self.size))
            for request in requests:
                request.slot.resume(states.get(request.index, {}))
            made = make_slot, model, requests
        except Exception as error:
            # For example memory running out; reported, because the slots are gone.
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
        """The completion of the run on ``slot``, whose infer request was replaced or can't be."""
        del self._making[slot]
        if slot not in self._in_flight:
            # The run has ended in the meantime.
            if isinstance(made, PooledRequest):
                self._spare.append(made)
            return None
        if isinstance(made, str):
            self._refusals[slot] = f"a run hung, and its infer request could not be replaced: {made}"
            return None
        self._over(slot)
        # The run was cancelled: it taints the model whenever it ends.
        self.tainted = self._rebuild is not None
        self._orphans.append(self._requests[slot])
        made.index, self._requests[slot] = slot, made
        return Completion(slot, time.monotonic_ns(), "the run was orphaned", replaced=True)

    def _reclaim(self) -> None:
        """Keep infer requests whose orphaned runs have ended after all, as spares."""
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
        """Runs on its own thread: it may wait for a hung stream."""
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
            # The loop may have been closed; an exception here would end the process.
            try:  # noqa: SIM105 - at the end of every run: suppress() is three calls more
                self._notify()
            except RuntimeError:
                pass


def _close(requests: list[PooledRequest]) -> None:
    """Free the requests, and each one's model after it."""
    while requests:
        requests.pop().slot.close()


def _not_copied(error: Exception) -> RunFailed:
    lost = f": {error_summary(error)}" if means_lost(str(error)) else ""
    return RunFailed(f"inputs could not be copied ({type(error).__name__}){lost}")


def _cancel(request: PooledRequest) -> None:
    # A lost device may refuse even that.
    with suppress(RuntimeError):
        request.slot.cancel()
