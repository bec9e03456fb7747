"""Whether a model accepts empty inputs, judged by shapes alone before a run."""

from collections.abc import Sequence

from inferd.engine.runtime import ov
from inferd.engine.shape_check import skeleton
from inferd.engine.skipped_ops import node_label, skipping_dims, walk
from inferd.engine.slot import error_summary
from inferd.engine.unwritten_outputs import Written, at_least_one
from inferd.tensors import Shape, Signature

# Cached verdicts. The key is which dimensions of each input are 0, which clients choose.
_KEPT = 1024

_Pattern = tuple[tuple[bool, ...], ...]


class EmptyInputs:
    """The verdicts on empty inputs for one model version; each pattern of zero dimensions is checked once.

    Keeps the model without its weights, and belongs to one thread.
    """

    def __init__(self, model: "ov.Model", written: Written) -> None:
        """``model`` was repaired; ``written`` are the operations made right."""
        self._model, self._ports = skeleton(model)
        self._before = [port.partial_shape for port in model.inputs]
        self._written = written
        self._known: dict[_Pattern, str] = {}

    def problem(self, shapes: Sequence[Shape]) -> str:
        """Why inputs of ``shapes``, one per input port, can't be answered; "" if they can, or none is empty."""
        if all(all(shape) for shape in shapes):
            return ""
        pattern = tuple(tuple(n == 0 for n in shape) for shape in shapes)
        if (known := self._known.get(pattern)) is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[pattern] = known = self._look(pattern)
        return known

    def _look(self, pattern: _Pattern) -> str:
        shapes = map(_shape, self._before, pattern)
        try:
            self._model.reshape(dict(zip(self._ports, shapes, strict=True)))
        except RuntimeError as error:
            return f"the model does not accept these empty inputs: {error_summary(error)}"
        for path, node in walk(self._model):
            if (path, node.get_friendly_name()) not in self._written and skipping_dims(node):
                return f"{node_label(node)} would have nothing to compute: its operand is empty for these inputs"
        return ""


def of(model: "ov.Model", written: Written, signature: Signature) -> EmptyInputs | None:
    """None for a model that takes no empty input: every dimension of its inputs has a lower bound above 0."""
    if all(spec.dims is not None and all(dim.lo for dim in spec.dims) for spec in signature.inputs):
        return None
    return EmptyInputs(model, written)


def _shape(declared: "ov.PartialShape", zeros: Sequence[bool]) -> "ov.PartialShape":
    """``declared`` with the ``zeros`` set to 0, and all other dimensions at least 1."""
    dims = list(declared) if declared.rank.is_static else [ov.Dimension(-1)] * len(zeros)
    filled = [dim if dim.is_static else at_least_one(dim) for dim in dims]
    return ov.PartialShape([ov.Dimension(0) if zero else dim for dim, zero in zip(filled, zeros, strict=True)])
