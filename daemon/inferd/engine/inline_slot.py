"""A Slot whose run is over when ``start`` returns: the thread that starts it computes it.

It saves two hand-overs between threads, each of which may wait for the GIL, and pays where a run takes less time than
they do (docs/decisions/0016). In return the starting thread does nothing else meanwhile, and a run can't be cancelled:
only for models whose run time is known and short.
"""

from collections.abc import Callable, Sequence
from typing import Any

from inferd.config.model import ModelConfig
from inferd.engine.ports import Ports, State
from inferd.engine.runtime import ov
from inferd.engine.slot import RunFailed, error_summary
from inferd.tensors import DType, Placed, Signature, Tensor

MOST_NS = 100_000
"""A model comes to run inline, where that is left open, if a run takes no longer than that: about what handing it to
another thread and taking the answer back costs."""

# BF16 has no numpy type, and strings have no memory to look at.
_NO_ARRAYS = (DType.BF16, DType.BYTES)

# How often these go round is in their data.
_LOOPS = frozenset({"Loop", "TensorIterator", "If"})


def left_open(config: ModelConfig) -> bool:
    """Whether the settings leave it open where runs are computed: they ask neither for a path nor for how runs are to
    go on side by side, which is not inline."""
    execution = config.execution
    asks_for_more = execution.streams > 1 or execution.infer_requests > 0 or execution.threads > 0
    return execution.path == "auto" and not asks_for_more


def may_run_inline(device: str, model: "ov.Model", signature: Signature) -> bool:
    """Whether one run of ``model`` takes as long as another: on the CPU, with all shapes fixed, also of what lies
    between inputs and outputs, and nothing in it that its data could make longer. ``device`` is resolved."""
    fixed = all(spec.static_shape is not None for spec in (*signature.inputs, *signature.outputs))
    return (
        device == "CPU"
        and fixed
        and not signature.in_sequences
        and not model.is_dynamic()
        and all(node.get_type_name() not in _LOOPS for node in model.get_ops())
    )


class InlineSlot:
    """A Slot on an OpenVINO infer request that runs on the calling thread: over when ``start`` has returned, so that
    ``on_done`` has nothing to tell and is never called."""

    def __init__(self, request: "ov.InferRequest", signature: Signature, on_done: Callable[[], None]) -> None:  # noqa: ARG002 - as other slots have it
        self._request = request
        self._ports = Ports(request, signature)
        # As OpenVINO's own method ends, without what looks for inputs among its arguments first.
        plain: Any = super(ov.InferRequest, request)
        self._infer = plain.infer
        # See SyncSlot.
        self._views = all(spec.dtype is not DType.BYTES for spec in signature.outputs)
        # Where all outputs have a shape known beforehand and a numpy type of their own, what a run returns is what is
        # read: asking for each output's tensor costs as much again.
        direct = all(spec.static_shape is not None and spec.dtype not in _NO_ARRAYS for spec in signature.outputs)
        self._shapes = [spec.static_shape for spec in signature.outputs] if direct and not self._ports.watched else None
        self._dtypes = [spec.dtype for spec in signature.outputs]
        self._arrays: Sequence[Any] = ()

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        self._ports.write(members)

    def write_shared(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]]) -> None:
        self._ports.write_shared(inputs, into)

    def release(self) -> None:
        # They may be views of it.
        self._arrays = ()
        self._ports.release()

    def reset(self) -> None:
        self._request.reset_state()

    def start(self) -> None:
        """A run that fails can't begin, as far as others can tell."""
        try:
            self._arrays = tuple(self._infer({}, self._views, False).values())
        except RuntimeError as error:
            raise RunFailed(error_summary(error)) from None

    def poll(self) -> bool:
        return True

    def wait(self, seconds: float | None = None) -> bool:  # noqa: ARG002 - it is over
        return True

    def cancel(self) -> None:
        """There is nothing to cancel."""

    def read(self, outputs: Sequence[int], rows: range | None = None) -> list[Tensor]:
        if self._shapes is None or rows is not None or self._ports.in_place:
            return self._ports.read(outputs, rows)
        given = []
        # No comprehension, which is a call of its own.
        for i in outputs:
            given.append(Tensor(self._dtypes[i], self._shapes[i], self._arrays[i].data))  # type: ignore[arg-type]  # noqa: PERF401 - none is None
        return given

    def state(self) -> State:
        return self._ports.state()

    def resume(self, state: State) -> None:
        self._ports.resume(state)

    def close(self) -> None:
        self._arrays = ()
        del self._ports, self._infer, self._request
