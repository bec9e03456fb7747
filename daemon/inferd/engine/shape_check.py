"""Whether a model can process inputs of given shapes, determined without running it.

OpenVINO infers the shapes of all operations for concrete input shapes, and raises if that fails. A request that would
fail like this is refused before it takes an infer request, because a failed run taints the compiled model (OpenVINO
fact 39). Failures that depend on the data are not detected.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from inferd.engine.rebuild import BODIES
from inferd.engine.runtime import ov
from inferd.engine.slot import message_lines
from inferd.errors import InvalidRequest, one_line
from inferd.tensors import Shape, Signature, Tensor

# Shapes are computed from small constants; larger ones are weights, of which only the shape matters here.
_SMALL = 1024
# Cached verdicts (LRU).
_KEPT = 4096
# Seconds: a check blocks the event loop, so checks that take longer than this are skipped,
_LONGEST = 0.02
# and all checks together may take a tenth of the time, after an initial allowance.
_PART, _AT_FIRST = 0.1, 0.1
_NODE = re.compile(r"While validating node '\S*?(\w+) (\S+) .*?with friendly_name '([^']*)'", re.DOTALL)


class ShapeCheck:
    """The verdicts on input shapes for one model. :meth:`check` is for the event loop's thread."""

    def __init__(
        self,
        model: "ov.Model",
        signature: Signature,
        *,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.thread_time,
    ) -> None:
        """Keeps a copy of ``model`` without its weights, and measures how long a check takes. Checks may use a tenth of
        ``clock``'s time, measured by ``busy``, which leaves out other threads."""
        self._model, self._ports = skeleton(model)
        self._inputs = signature.inputs
        self._clock = clock
        self._busy = busy
        self._verdicts: OrderedDict[tuple[Shape, ...], str] = OrderedDict()
        took = []
        for rows in (1, 2):
            begun = busy()
            self._problem(tuple(tuple(max(n, rows) for n in spec.smallest()) for spec in self._inputs))
            took.append(busy() - begun)
        self.slow = min(took) > _LONGEST
        """Whether checks take too long for the event loop: only failed inputs are then checked, by :meth:`learn`."""
        self._credit, self._at = _AT_FIRST, clock()

    def check(self, model: str, inputs: Sequence[Tensor]) -> None:
        """Raise InvalidRequest if the model can't process ``inputs``, in port order."""
        shapes = _shapes(inputs)
        verdict = self._verdicts.get(shapes)
        if verdict is None:
            verdict = self._judged(shapes)
        else:
            self._verdicts.move_to_end(shapes)
        if verdict:
            raise InvalidRequest(model, verdict)

    def learn(self, inputs: Sequence[Tensor]) -> None:
        """Check the shapes of ``inputs`` without a time limit; if :attr:`slow`, on any one thread."""
        shapes = _shapes(inputs)
        self._keep(shapes, self._problem(shapes))

    def _judged(self, shapes: tuple[Shape, ...]) -> str:
        now = self._clock()
        self._credit, self._at = min(_AT_FIRST, self._credit + (now - self._at) * _PART), now
        if self.slow or self._credit <= 0:
            # The run may then fail.
            return ""
        begun = self._busy()
        verdict = self._problem(shapes)
        self._credit -= self._busy() - begun
        self._keep(shapes, verdict)
        return verdict

    def _keep(self, shapes: tuple[Shape, ...], verdict: str) -> None:
        self._verdicts[shapes] = verdict
        if len(self._verdicts) > _KEPT:
            self._verdicts.popitem(last=False)

    def _problem(self, shapes: tuple[Shape, ...]) -> str:
        """Why the model can't process inputs of ``shapes``, "" if nothing is known against them."""
        try:
            self._model.reshape(
                {port: ov.PartialShape(list(shape)) for port, shape in zip(self._ports, shapes, strict=True)}
            )
        except RuntimeError as error:
            given = ", ".join(f"'{spec.name}' {list(shape)}" for spec, shape in zip(self._inputs, shapes, strict=True))
            return f"inputs of shapes {one_line(given, 400)} don't fit the model: {_explained(error)}"
        return ""


def shape_check(model: "ov.Model", signature: Signature) -> ShapeCheck | None:
    """The check for ``model``. None if all shapes are fixed, as compiling has checked them; also if it has bodies: one
    that is never entered may have shapes that don't fit."""
    if all(spec.static_shape is not None for spec in signature.inputs):
        return None
    if any(node.get_type_name() in BODIES for node in model.get_ops()):
        return None
    return ShapeCheck(model, signature)


def skeleton(model: "ov.Model") -> "tuple[ov.Model, list[ov.Output]]":
    """A copy of ``model`` without its weights, and its input ports; it infers the same shapes."""
    copy = model.clone()
    ports = list(copy.inputs)
    stand_ins = []
    for node in copy.get_ops():
        if node.get_type_name() != "Constant" or node.get_byte_size() <= _SMALL:
            continue
        output = node.output(0)
        stand_in = ov.op.Parameter(output.element_type, output.partial_shape)
        for target in output.get_target_inputs():
            target.replace_source_output(stand_in.output(0))
        stand_ins.append(stand_in)
    copy.add_parameters(stand_ins)
    copy.validate_nodes_and_infer_types()
    return copy, ports


def _shapes(inputs: Sequence[Tensor]) -> tuple[Shape, ...]:
    return tuple([tensor.shape for tensor in inputs])


def _explained(error: RuntimeError) -> str:
    """OpenVINO's explanation: the operation's type and name, and the problem."""
    text = str(error)
    said = [line for line in message_lines(error) if not line.startswith(("Check '", "While validating"))]
    problem = " ".join(said) or "its shapes can't be inferred"
    node = _NODE.search(text)
    return f"{node[1]} '{node[3]}': {problem}" if node else problem
