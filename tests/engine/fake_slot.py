"""A Slot without a device, for tests that decide when and how each run ends.

It is verified: tests/engine/test_slot.py and test_slot_rows.py hold it and the real one to the
same contract.
"""

from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Thread

from inferd.engine.slot import RunFailed
from inferd.errors import ResponseTooLarge
from inferd.requests import NO_LIMIT
from inferd.tensors import Placed, Tensor


class FakeSlot:
    """Echoes: output ``i`` of a run is its input ``i``. Rows are counted by the first dimension.

    A run goes on until :meth:`complete`, :meth:`fail` or :meth:`cancel`. ``refuses_to_start``
    makes the next start raise its text. A ``deaf`` slot ignores cancel, as a device does
    inside one long kernel.
    """

    def __init__(self, on_done: Callable[[], None], *, deaf: bool = False) -> None:
        self.deaf = deaf
        self.refuses_to_start: str | None = None
        self.starts = 0
        self.cancels = 0
        self.resets = 0
        self.closed = False
        self.shared = False
        self.into: Sequence[tuple[int, Placed]] = ()
        self._on_done = on_done
        self._written: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._changed = Condition()
        self._running = False
        self._failure: str | None = None

    @property
    def running(self) -> bool:
        return self._running

    @property
    def written(self) -> Sequence[Tensor]:
        """What the run works on."""
        return self._written

    # -- what the device does -----------------------------------------------------

    def complete(self) -> None:
        """The run ends well: as OpenVINO does it, poll tells so only after ``on_done`` has returned."""
        self._assert_running()
        self._outputs = self._written
        device = Thread(target=self._on_done)
        device.start()
        device.join()
        self._end(None)

    def fail(self, sentence: str) -> None:
        """The run raises ``sentence``."""
        self._assert_running()
        self._end(sentence)

    # -- the Slot protocol --------------------------------------------------------

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        self._written = [_joined(parts) for parts in zip(*members, strict=True)]

    def write_shared(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]]) -> None:
        assert not self.shared, "a client's memory was not given back"
        self.shared = True
        self.into = tuple(into)
        self.write([inputs])

    def release(self) -> None:
        self.shared = False

    def reset(self) -> None:
        self.resets += 1

    def start(self) -> None:
        if self._running:
            raise RunFailed("Infer Request is busy")
        if self.refuses_to_start is not None:
            sentence, self.refuses_to_start = self.refuses_to_start, None
            raise RunFailed(sentence)
        self.starts += 1
        self._running, self._failure = True, None

    def poll(self) -> bool:
        with self._changed:
            if self._failure is not None:
                raise RunFailed(self._failure)
            return not self._running

    def wait(self, seconds: float | None = None) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: not self._running, seconds)
        return self.poll()

    def cancel(self) -> None:
        self.cancels += 1
        if self._running and not self.deaf:
            self._end("Infer Request was canceled")

    def read(self, outputs: Sequence[int], rows: range | None = None, most: int = NO_LIMIT) -> list[Tensor]:
        if (nbytes := sum(len(self._outputs[i].data) for i in outputs)) > most:
            raise ResponseTooLarge("", nbytes, most)
        return [self._outputs[i] if rows is None else _part(self._outputs[i], rows) for i in outputs]

    def state(self) -> Mapping[str, object]:
        return {}

    def resume(self, state: Mapping[str, object]) -> None:
        assert not state, "an echo keeps no state"

    def close(self) -> None:
        assert not self._running, "closed with a run in flight"
        self.closed = True

    def _end(self, failure: str | None) -> None:
        with self._changed:
            self._running, self._failure = False, failure
            self._changed.notify_all()

    def _assert_running(self) -> None:
        assert self._running, "nothing runs on this slot"


def _joined(parts: Sequence[Tensor]) -> Tensor:
    first = parts[0]
    shape = first.shape if len(parts) == 1 else (sum(p.shape[0] for p in parts), *first.shape[1:])
    if isinstance(first.data, list | tuple):
        return Tensor(first.dtype, shape, [element for part in parts for element in part.data])  # type: ignore[misc]
    return Tensor(first.dtype, shape, b"".join(map(_bytes, parts)))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.data.copied() if isinstance(tensor.data, Placed) else bytes(tensor.data)  # type: ignore[arg-type]


def _part(whole: Tensor, rows: range) -> Tensor:
    each = len(whole.data) // whole.shape[0]
    return Tensor(whole.dtype, (len(rows), *whole.shape[1:]), whole.data[rows.start * each : rows.stop * each])
