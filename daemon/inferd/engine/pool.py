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
from dataclasses import dataclass

from inferd.engine.slot import RunFailed, Slot, SlotFactory
from inferd.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Completion:
    """A run that ended: at which time, and why it failed or None."""

    slot: int
    at: int
    failure: str | None


class Pool:
    """Slots of one device; the scheduler decides which is free, the pool runs them.

    ``start``, ``cancel``, ``read``, ``drain`` and ``sweep`` belong to one thread.
    """

    def __init__(
        self, device: str, size: int, make_slot: SlotFactory, model: object = None, width: int | None = None
    ) -> None:
        """``model`` is whatever the slots run: it is let go of only after all of them are freed.

        What ``make_slot`` raises is passed on; the slots made until then are freed.
        ``width`` is how many runs the device does well side by side, all slots if None.
        """
        self.device = device
        self.width = width or size
        self._model = model
        self._slots: list[Slot] = []
        # A run's number: a hand-over that arrives after its run was swept is recognised by it.
        self._runs = [0] * size
        self._in_flight: set[int] = set()
        self._handed_over: deque[tuple[int, int, int]] = deque()
        self._signalled = False
        self._notify: Callable[[], object] = lambda: None
        try:
            for i in range(size):
                self._slots.append(make_slot(self._completion_of(i)))
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        return len(self._runs)

    @property
    def in_flight(self) -> int:
        """Runs that have not ended."""
        return len(self._in_flight)

    def attach(self, notify: Callable[[], object]) -> None:
        """Have ``notify`` called, on any thread, when :meth:`drain` has something to give."""
        self._notify = notify

    def start(self, slot: int, members: Sequence[Sequence[Tensor]], *, fresh: bool = False) -> int:
        """Copy the inputs of each member and begin a run, from the model's initial state if ``fresh``.

        Returns the time the copy was done; raises RunFailed.
        """
        try:
            if fresh:
                self._slots[slot].reset()
            self._slots[slot].write(members)
        except (RuntimeError, ValueError) as error:
            raise RunFailed(f"inputs could not be copied ({type(error).__name__})") from error
        copied = time.monotonic_ns()
        self._runs[slot] += 1
        self._slots[slot].start()
        self._in_flight.add(slot)
        return copied

    def cancel(self, slot: int) -> None:
        """Ask the run on ``slot`` to end; it is reported like any other once it has."""
        if slot in self._in_flight:
            self._slots[slot].cancel()

    def read(self, slot: int, outputs: Sequence[int], rows: range | None = None) -> list[Tensor]:
        """Outputs of the run that ended on ``slot``, or ``rows`` of them; valid until the next start there."""
        return self._slots[slot].read(outputs, rows)

    def drain(self) -> list[Completion]:
        """The runs that ended well since the last call, each once."""
        self._signalled = False
        ended = []
        while self._handed_over:
            slot, run, at = self._handed_over.popleft()
            if slot in self._in_flight and run == self._runs[slot]:
                self._in_flight.discard(slot)
                ended.append(Completion(slot, at, None))
        return ended

    def sweep(self) -> list[Completion]:
        """The reaper: runs that ended without a callback, because they failed or were cancelled."""
        ended = self.drain()
        for slot in sorted(self._in_flight):
            try:
                if not self._slots[slot].poll():
                    continue
                failure = None
            except RunFailed as error:
                failure = str(error)
            self._in_flight.discard(slot)
            ended.append(Completion(slot, time.monotonic_ns(), failure))
        return ended

    def close(self) -> None:
        """Cancel and wait for what is in flight, then free the slots; nothing can be started after.

        Leaving the interpreter with a run in flight would abort it. The slots go because
        each infer request holds, in C++ where no garbage collector looks, a callback that
        leads back to this pool: without it neither would ever be freed.
        """
        for slot in sorted(self._in_flight):
            self._slots[slot].cancel()
            with suppress(RunFailed):
                self._slots[slot].wait()
        self._in_flight.clear()
        while self._slots:
            self._slots.pop().close()
        self._model = None

    def run_all(self, inputs: Sequence[Tensor]) -> float:
        """One run on every slot, as many side by side as the width is, for warm-up.

        Returns nanoseconds until all of the first that ran side by side ended. Raises RunFailed.
        """
        turns = [range(at, min(at + self.width, self.size)) for at in range(0, self.size, self.width)]
        took = [self._run_side_by_side(turn, inputs) for turn in turns]
        return took[0]

    def _run_side_by_side(self, slots: range, inputs: Sequence[Tensor]) -> float:
        begun = time.monotonic_ns()
        with ExitStack() as runs:
            # Takes back their hand-overs: nobody listens yet, and a signal left standing would swallow the next.
            runs.callback(self.drain)
            for slot in slots:
                self._slots[slot].write([inputs])
                self._slots[slot].start()
                runs.callback(self._slots[slot].wait)
        return float(time.monotonic_ns() - begun)

    def _completion_of(self, slot: int) -> Callable[[], None]:
        def completed() -> None:
            self._handed_over.append((slot, self._runs[slot], time.monotonic_ns()))
            if not self._signalled:
                self._signalled = True
                # The loop may have closed under us; an exception here would end the process.
                with suppress(RuntimeError):
                    self._notify()

        return completed
