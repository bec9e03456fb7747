"""The engine seam: one infer request as the rest of inferd sees it.

:class:`Slot` is all that a pool knows of OpenVINO. The fake in tests/engine/fake_slot.py
implements the same protocol and both pass the same contract tests.
"""

import re
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from inferd.disclosure import without_host_paths
from inferd.engine.device_loss import means_lost
from inferd.engine.openvino_messages import MESSAGE_LOG
from inferd.engine.ports import Ports, State
from inferd.engine.runtime import ov
from inferd.errors import one_line
from inferd.tensors import Placed, Signature, Tensor


class RunFailed(Exception):
    """The run raised; ``str()`` is the device's own sentence without source locations."""


class Slot(Protocol):
    """One reusable asynchronous inference. At most one run is in flight at a time."""

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        """Copy the inputs of each member, in port order, into the slot's own memory.

        Several members' rows are laid one after the other along each input's batch axis.
        """

    def write_shared(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]]) -> None:
        """Likewise for one member. Its inputs may be used in place, in a client's memory, and its outputs computed
        right ``into`` that memory, by port index; all other inputs are copied. Call :meth:`release` once the run has
        ended and was read."""

    def release(self) -> None:
        """Release a client's memory that was used in place. Harmless if none was."""

    def reset(self) -> None:
        """Forget the state that a stateful model has kept from earlier runs."""

    def start(self) -> None:
        """Begin a run; raises RunFailed when it can't begin.

        On success ``on_done`` is called on a thread of the device. On failure and on
        cancel it is not (OpenVINO fact 2): :meth:`poll` is the other way a run ends.
        """

    def poll(self) -> bool:
        """Whether the run has ended well; raises RunFailed when it failed or was cancelled."""

    def wait(self, seconds: float | None = None) -> bool:
        """Block until the run ends, or ``seconds`` at most; False where it has not. Raises RunFailed as :meth:`poll`
        does."""

    def cancel(self) -> None:
        """Ask the run to end early."""

    def read(self, outputs: Sequence[int], rows: range | None = None) -> list[Tensor]:
        """The outputs at those port indexes, or ``rows`` of them along the batch axis.

        Views that the next run overwrites (OpenVINO fact 8); not contiguous where the batch
        axis is not the first. Raises InvalidRequest where the run had nothing to make them from.
        """

    def state(self) -> State:
        """A copy of the state that a stateful model keeps here, empty where it keeps none. No run may be in flight."""

    def resume(self, state: State) -> None:
        """Go on from a ``state`` that was another slot's."""

    def close(self) -> None:
        """Free the slot; returns once the device holds nothing of it. No run may be in flight."""


SlotFactory = Callable[[Callable[[], None]], Slot]

_FRAME = re.compile(r"\s*(Exception from|Caught exception:?)\s*")


def error_summary(error: Exception, near: Path | None = None) -> str:
    """The part of an OpenVINO message that says what was wrong: one line without paths and source files, where files
    about ``near`` are told by their place there. What that leaves out is in the log.

    Advice may follow the line that says that the device is lost; else it is the last that counts.
    """
    said = message_lines(error, near)
    told = one_line(next(filter(means_lost, said), said[-1] if said else type(error).__name__))
    MESSAGE_LOG.tell(str(error), told)
    return told


def message_lines(error: Exception, near: Path | None = None) -> list[str]:
    """All lines of an OpenVINO message that say something, without paths and source files."""
    cleaned = [without_host_paths(line, near).strip(" :") for line in str(error).splitlines()]
    return [line for line in cleaned if line and not _FRAME.fullmatch(line)]


class InferSlot:
    """A Slot on an OpenVINO infer request that runs on OpenVINO's own threads."""

    def __init__(self, request: "ov.InferRequest", signature: Signature, on_done: Callable[[], None]) -> None:
        self._request = request
        self._ports = Ports(request, signature)

        # As OpenVINO's own method ends, without what looks for inputs among its arguments first.
        plain: Any = super(ov.InferRequest, request)
        self._start_async = plain.start_async

        def done(_: object) -> None:
            on_done()

        # C++ now holds the only reference to the callback, so its end is the infer request's end.
        self._released = Event()
        weakref.finalize(done, self._released.set)
        request.set_callback(done, None)

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        self._ports.write(members)

    def write_shared(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]]) -> None:
        self._ports.write_shared(inputs, into)

    def release(self) -> None:
        self._ports.release()

    def reset(self) -> None:
        self._request.reset_state()

    def start(self) -> None:
        try:
            self._start_async({}, None)
        except RuntimeError as error:
            raise RunFailed(error_summary(error)) from None

    def poll(self) -> bool:
        try:
            return bool(self._request.wait_for(0))
        except RuntimeError as error:
            raise RunFailed(error_summary(error)) from None

    def wait(self, seconds: float | None = None) -> bool:
        try:
            if seconds is not None:
                return bool(self._request.wait_for(int(seconds * 1000)))
            self._request.wait()
        except RuntimeError as error:
            raise RunFailed(error_summary(error)) from None
        return True

    def cancel(self) -> None:
        self._request.cancel()

    def read(self, outputs: Sequence[int], rows: range | None = None) -> list[Tensor]:
        return self._ports.read(outputs, rows)

    def state(self) -> State:
        return self._ports.state()

    def resume(self, state: State) -> None:
        self._ports.resume(state)

    def close(self) -> None:
        """The device's thread may still hold the infer request after wait() has returned.

        It then drops it, and with it the callback, for which it needs the GIL; freeing the
        compiled model meanwhile joins that thread with the GIL held, and both wait for ever.
        """
        del self._ports, self._start_async, self._request
        self._released.wait()
