"""Inputs that a model has just failed on: a repeat gets the same error without another run.

If a failed run means that the model must be rebuilt, it costs other clients more than its own time, and most
such runs come from clients that retry.
"""

from collections import deque
from collections.abc import Sequence

from inferd.errors import InferdError
from inferd.requests import Request
from inferd.tensors import Placed, Tensor

# Every request is compared with all of these, so they are few; large inputs are not kept.
_KEPT = 16
_LARGEST = 1 << 20
# For this long only: the failure may have been transient, such as memory running out.
_FOR = 30_000_000_000


class FailedInputs:
    """The latest failed inputs, with their errors. Times are nanoseconds of one clock."""

    def __init__(self) -> None:
        # Expiry, inputs, device and error.
        self._kept: deque[tuple[int, Sequence[Tensor], str, InferdError]] = deque(maxlen=_KEPT)

    def __bool__(self) -> bool:
        return bool(self._kept)

    def keep(self, request: Request, error: InferdError, now: int) -> None:
        """``request`` has failed with ``error``: keep its inputs, if they are small and not in shared memory."""
        inputs = request.inputs
        if sum(len(tensor.data) for tensor in inputs) > _LARGEST or any(type(t.data) is Placed for t in inputs):
            return
        self._kept.append((now + _FOR, tuple([tensor.copied() for tensor in inputs]), request.device, error))

    def find(self, request: Request, now: int) -> InferdError | None:
        """The error that equal inputs met lately, None if there is none. Sets their device on ``request``, as if it
        had run there."""
        while self._kept and self._kept[0][0] <= now:
            self._kept.popleft()
        for _, bad, device, error in self._kept:
            if all(_equal(a, b) for a, b in zip(bad, request.inputs, strict=True)):
                request.device = device
                return error
        return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and type(b.data) is not Placed and a.data == b.data
