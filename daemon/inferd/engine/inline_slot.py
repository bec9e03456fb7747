"""A Slot whose run is over when ``start`` returns: the calling thread computes it.

It saves two hand-overs between threads, each of which may wait for the GIL, and pays off if a run takes less time than
they do (docs/decisions/0016). In return the calling thread is blocked meanwhile, and a run can't be cancelled: only
for models whose run time is known and short.
"""

from collections.abc import Callable, Sequence
from typing import Any

from inferd.config.model import ModelConfig
from inferd.engine.ports import Ports, State
from inferd.engine.runtime import ov
from inferd.engine.slot import RunFailed, error_summary
from inferd.requests import NO_LIMIT
from inferd.tensors import DType, Placed, Signature, Tensor

MOST_NS = 100_000
"""A model whose settings leave the path open runs inline if a run takes no longer than this: about the cost of handing
it to another thread and taking the result back."""

# BF16 has no numpy type, and strings have no buffer.
_NO_ARRAYS = (DType.BF16, DType.BYTES)

# Their number of iterations depends on the data.
_LOOPS = frozenset({"Loop", "TensorIterator", "If"})


def left_open(config: ModelConfig) -> bool:
    """Whether the settings leave the execution path open: they set neither a path nor anything about parallel runs,
    which exclude inline."""
    execution = config.execution
    asks_for_more = execution.streams > 1 or execution.infer_requests > 0 or execution.threads > 0
    return execution.path == "auto" and not asks_for_more


def may_run_inline(device: str, model: "ov.Model", signature: Signature) -> bool:
    """Whether all runs of ``model`` take equally long: on the CPU, all shapes fixed, inside the model as well, and no
    operation whose time depends on the data. ``device`` is resolved."""
    fixed = all(spec.static_shape is not None for spec in (*signature.inputs, *signature.outputs))
    return (
        device == "CPU"
        and fixed
        and not signature.in_sequences
        and not model.is_dynamic()
        and all(node.get_type_name() not in _LOOPS for node in model.get_ops())
    )


class InlineSlot:
    """A Slot on an OpenVINO infer request that runs on the calling thread. A run is over when ``start`` returns, so
    ``on_done`` is never called."""

    def __init__(self, request: "ov.InferRequest", signature: Signature, on_done: Callable[[], None]) -> None:  # noqa: ARG002 - as other slots have it
        self._request = request
        self._ports = Ports(request, signature)
        # The native method, without OpenVINO's Python wrapper that looks for inputs among the arguments.
        plain: Any = super(ov.InferRequest, request)
        self._infer = plain.infer
        # See SyncSlot.
        self._views = all(spec.dtype is not DType.BYTES for spec in signature.outputs)
        # If all outputs have a fixed shape and a numpy type, use the run's return value: fetching each output's tensor
        # would cost as much again.
        direct = all(spec.static_shape is not None and spec.dtype not in _NO_ARRAYS for spec in signature.outputs)
        self._shapes = [spec.static_shape for spec in signature.outputs] if direct and not self._ports.watched else None
        self._dtypes = [spec.dtype for spec in signature.outputs]
        self._arrays: Sequence[Any] = ()

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        self._ports.write(members)

    def write_shared(self, inputs: Sequence[Tensor], into: Sequence[tuple[int, Placed]]) -> None:
        self._ports.write_shared(inputs, into)

    def release(self) -> None:
        # They may be views of the released memory.
        self._arrays = ()
        self._ports.release()

    def reset(self) -> None:
        self._request.reset_state()

    def start(self) -> None:
        """A failed run raises here, as one that can't begin does in other slots."""
        try:
            self._arrays = tuple(self._infer({}, self._views, False).values())
        except RuntimeError as error:
            raise RunFailed(error_summary(error)) from None

    def poll(self) -> bool:
        return True

    def wait(self, seconds: float | None = None) -> bool:  # noqa: ARG002 - it is over
        return True

    def cancel(self) -> None:
        """Nothing to cancel."""

    def read(self, outputs: Sequence[int], rows: range | None = None, most: int = NO_LIMIT) -> list[Tensor]:
        if self._shapes is None or rows is not None or self._ports.in_place:
            return self._ports.read(outputs, rows, most)
        given = []
        # Not a comprehension, which would be a function call of its own.
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
