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
from inferd.requests import NO_LIMIT
from inferd.tensors import Placed, Signature, Tensor


class RunFailed(Exception):
    """The run raised; ``str()`` is the device's own sentence without source locations."""


class Slot(Protocol):
    """One reusable asynchronous inference. At most one run is in flight at a time."""

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        """Copy the inputs of each member, in port order, into the slot's own memory.

        The rows of several members are concatenated along each input's batch axis.
        """

    def write_shared(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]]) -> None:
        """Like :meth:`write`, for one member. Its inputs may be used in place, in a client's memory, and its outputs
        computed directly ``into`` that memory, by port index; all other inputs are copied. Call :meth:`release` once
        the run has ended and was read."""

    def release(self) -> None:
        """Release a client's memory that was used in place. Harmless if none was."""

    def reset(self) -> None:
        """Reset the state of a stateful model."""

    def start(self) -> None:
        """Begin a run; raises RunFailed if it can't begin.

        On success, a thread of the device calls ``on_done``. After a failure or a cancel it does not (OpenVINO fact 2):
        only :meth:`poll` then tells that the run has ended.
        """

    def poll(self) -> bool:
        """Whether the run has succeeded; raises RunFailed if it failed or was cancelled."""

    def wait(self, seconds: float | None = None) -> bool:
        """Block until the run ends, or ``seconds`` at most; False if it has not. Raises RunFailed like :meth:`poll`."""

    def cancel(self) -> None:
        """Ask the run to end early."""

    def read(self, outputs: Sequence[int], rows: range | None = None, most: int = NO_LIMIT) -> list[Tensor]:
        """The outputs at those port indexes, or ``rows`` of them along the batch axis.

        The next run overwrites these views (OpenVINO fact 8). They are not contiguous if the batch axis is not the
        first. Raises InvalidRequest if an output could not be computed from the run's inputs, and ResponseTooLarge if
        they have more than ``most`` bytes; only outputs of an open shape are looked at.
        """

    def state(self) -> State:
        """A copy of a stateful model's state, empty for other models. No run may be in flight."""

    def resume(self, state: State) -> None:
        """Continue from the ``state`` of another slot."""

    def close(self) -> None:
        """Free the slot; returns once the device no longer uses it. No run may be in flight."""


SlotFactory = Callable[[Callable[[], None]], Slot]

_FRAME = re.compile(r"\s*(Exception from|Caught exception:?)\s*")


def error_summary(error: Exception, near: Path | None = None) -> str:
    """The essence of an OpenVINO message, on one line: without paths and source files, except that files near ``near``
    are given relative to it. The log has the whole message.

    The last line counts, unless an earlier one says that the device is lost: advice may follow it.
    """
    said = message_lines(error, near)
    told = one_line(next(filter(means_lost, said), said[-1] if said else type(error).__name__))
    MESSAGE_LOG.tell(str(error), told)
    return told


def message_lines(error: Exception, near: Path | None = None) -> list[str]:
    """All lines of an OpenVINO message with content, without paths and source files."""
    cleaned = [without_host_paths(line, near).strip(" :") for line in str(error).splitlines()]
    return [line for line in cleaned if line and not _FRAME.fullmatch(line)]


class InferSlot:
    """A Slot on an OpenVINO infer request that runs on OpenVINO's own threads."""

    def __init__(self, request: "ov.InferRequest", signature: Signature, on_done: Callable[[], None]) -> None:
        self._request = request
        self._ports = Ports(request, signature)

        # The native method, without OpenVINO's Python wrapper that looks for inputs among the arguments.
        plain: Any = super(ov.InferRequest, request)
        self._start_async = plain.start_async

        def done(_: object) -> None:
            on_done()

        # Only C++ holds a reference to the callback now, so the callback is freed with the infer request.
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

    def read(self, outputs: Sequence[int], rows: range | None = None, most: int = NO_LIMIT) -> list[Tensor]:
        return self._ports.read(outputs, rows, most)

    def state(self) -> State:
        return self._ports.state()

    def resume(self, state: State) -> None:
        self._ports.resume(state)

    def close(self) -> None:
        """Free the slot, and wait until the device's thread has dropped the infer request.

        It may still hold it after wait() has returned. Dropping it frees the callback, which needs the GIL; freeing the
        compiled model at the same time joins that thread with the GIL held: a deadlock.
        """
        del self._ports, self._start_async, self._request
        self._released.wait()
