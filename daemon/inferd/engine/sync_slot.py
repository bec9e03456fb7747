"""A Slot that computes runs on its own thread, which calls ``infer()`` and waits.

It saves the hand-overs to OpenVINO's own thread and from there to its callback thread: worth it if a run takes a
fraction of a millisecond (OpenVINO fact 5). In return a run begins only when the thread gets the GIL, which the
starting thread may hold for a while.
"""

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from time import monotonic

import structlog

from inferd.engine.ports import Ports, State
from inferd.engine.runtime import ov
from inferd.engine.slot import RunFailed, error_summary
from inferd.requests import NO_LIMIT
from inferd.tensors import DType, Placed, Signature, Tensor

log = structlog.get_logger("inferd.engine")

_CANCEL_AGAIN_SECONDS = 0.02


class SyncSlot:
    """A Slot on an OpenVINO infer request that runs on the slot's own thread.

    As many runs are computed in parallel as the compiled model has streams; the others wait inside
    ``infer()`` (OpenVINO fact 28).
    """

    def __init__(self, request: "ov.InferRequest", signature: Signature, on_done: Callable[[], None]) -> None:
        self._request = request
        self._ports = Ports(request, signature)
        self._on_done = on_done
        # infer()'s result is not used. Views are cheapest, but strings have none, and OpenVINO warns.
        self._views = all(spec.dtype is not DType.BYTES for spec in signature.outputs)
        # Runs that were started, computed, and handed over. The next run may start while the hand-over of the one
        # before is still returning.
        self._started = self._computed = self._ended = 0
        self._changed = Condition(Lock())
        self._cancelled = False
        self._failure: str | None = None
        # True begins a run, False ends the thread.
        self._orders: SimpleQueue[bool] = SimpleQueue()
        # A daemon thread, so that a slot left open does not keep the process from ending.
        self._thread = Thread(target=self._work, name="inferd-slot", daemon=True)
        self._thread.start()

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        self._ports.write(members)

    def write_shared(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]]) -> None:
        self._ports.write_shared(inputs, into)

    def release(self) -> None:
        self._ports.release()

    def reset(self) -> None:
        self._request.reset_state()

    def start(self) -> None:
        if self._computed != self._started:
            raise RunFailed("Infer Request is busy")
        self._cancelled = False
        self._started += 1
        self._orders.put(True)

    def poll(self) -> bool:
        if self._ended != self._started:
            self._cancel_again()
            return False
        if self._failure is not None:
            raise RunFailed(self._failure)
        return True

    def wait(self, seconds: float | None = None) -> bool:
        until = None if seconds is None else monotonic() + seconds
        with self._changed:
            while not self._changed.wait_for(lambda: self._ended == self._started, _CANCEL_AGAIN_SECONDS):
                if until is not None and monotonic() >= until:
                    return False
                self._cancel_again()
        return self.poll()

    def cancel(self) -> None:
        self._cancelled = True
        self._request.cancel()

    def read(self, outputs: Sequence[int], rows: range | None = None, most: int = NO_LIMIT) -> list[Tensor]:
        return self._ports.read(outputs, rows, most)

    def state(self) -> State:
        return self._ports.state()

    def resume(self, state: State) -> None:
        self._ports.resume(state)

    def close(self) -> None:
        """Only the slot's own thread holds the infer request, so only that is waited for."""
        self._orders.put(False)
        self._thread.join()
        del self._ports, self._request, self._on_done

    def _cancel_again(self) -> None:
        # A cancel is lost if the run does not compute yet, and harmless to repeat if it does.
        if self._cancelled:
            self._request.cancel()

    # -- on the slot's own thread -------------------------------------------------

    def _work(self) -> None:
        while self._orders.get():
            self._failure = self._run()
            self._computed += 1
            if self._failure is None:
                self._hand_over()
            with self._changed:
                self._ended += 1
                self._changed.notify_all()

    def _run(self) -> str | None:
        """Why the run failed, None if it did not."""
        if self._cancelled:
            return "Infer Request was canceled"
        try:
            # Releases the GIL while it computes.
            self._request.infer(share_outputs=self._views)
        except RuntimeError as error:
            return error_summary(error)
        except Exception as error:
            # For example memory running out. The thread must survive, or the slot would be lost.
            log.exception("run raised an unexpected exception")
            return error_summary(error)
        return None

    def _hand_over(self) -> None:
        try:
            self._on_done()
        except Exception:
            # The reaper will find the successful run.
            log.exception("hand-over callback raised an exception")
