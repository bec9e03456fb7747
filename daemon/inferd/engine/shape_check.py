"""Whether a model can process inputs of given shapes, determined without running it.

OpenVINO infers the shapes of all operations for concrete shapes of the inputs, and raises where one can't be. A request
that would fail so is refused before it takes an infer request: a run that fails leaves the compiled model unfit for
others (OpenVINO fact 39). What only the data decide is not seen here.
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

# Shapes are made of small constants; all larger ones are weights, of which only the shape counts here.
_SMALL = 1024
# Verdicts that are kept, the latest used ones.
_KEPT = 4096
# Seconds: a look holds up the event loop, so that it is left out where it takes longer than this,
_LONGEST = 0.02
# and altogether they take a tenth of the time, after a first so much.
_PART, _AT_FIRST = 0.1, 0.1
_NODE = re.compile(r"While validating node '\S*?(\w+) (\S+) .*?with friendly_name '([^']*)'", re.DOTALL)


class ShapeCheck:
    """The verdicts on shapes of one model. :meth:`check` is for the event loop's thread."""

    def __init__(
        self,
        model: "ov.Model",
        signature: Signature,
        *,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.thread_time,
    ) -> None:
        """Keeps a copy of ``model`` without its weights, and tries how long a look takes. Of ``clock`` a tenth may be
        spent, as ``busy`` counts it: other threads' work is not ours."""
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
        """Whether looks take too long for the event loop: what runs and fails is for :meth:`learn`."""
        self._credit, self._at = _AT_FIRST, clock()

    def check(self, model: str, inputs: Sequence[Tensor]) -> None:
        """Raise InvalidRequest where ``inputs``, in port order, can't go through ``model``."""
        shapes = _shapes(inputs)
        verdict = self._verdicts.get(shapes)
        if verdict is None:
            verdict = self._judged(shapes)
        else:
            self._verdicts.move_to_end(shapes)
        if verdict:
            raise InvalidRequest(model, verdict)

    def learn(self, inputs: Sequence[Tensor]) -> None:
        """Look at the shapes of ``inputs`` however long it takes, on any one thread where looks are :attr:`slow`."""
        shapes = _shapes(inputs)
        self._keep(shapes, self._problem(shapes))

    def _judged(self, shapes: tuple[Shape, ...]) -> str:
        now = self._clock()
        self._credit, self._at = min(_AT_FIRST, self._credit + (now - self._at) * _PART), now
        if self.slow or self._credit <= 0:
            # It may run, and fail.
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
        """Why inputs of ``shapes`` can't go through the model, "" where nothing is known against it."""
        try:
            self._model.reshape(
                {port: ov.PartialShape(list(shape)) for port, shape in zip(self._ports, shapes, strict=True)}
            )
        except RuntimeError as error:
            given = ", ".join(f"'{spec.name}' {list(shape)}" for spec, shape in zip(self._inputs, shapes, strict=True))
            return f"inputs of shapes {one_line(given, 400)} do not go through the model: {_explained(error)}"
        return ""


def shape_check(model: "ov.Model", signature: Signature) -> ShapeCheck | None:
    """The check for ``model``; None where all shapes are fixed, which have been looked at when it was compiled, and
    where it has bodies: one that is not entered may have shapes that don't fit."""
    if all(spec.static_shape is not None for spec in signature.inputs):
        return None
    if any(node.get_type_name() in BODIES for node in model.get_ops()):
        return None
    return ShapeCheck(model, signature)


def skeleton(model: "ov.Model") -> "tuple[ov.Model, list[ov.Output]]":
    """A copy of ``model`` that holds none of its weights, and the ports of its inputs: shapes are inferred as ever."""
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
    """What OpenVINO says of the operation: its type and name, and what is wrong."""
    text = str(error)
    said = [line for line in message_lines(error) if not line.startswith(("Check '", "While validating"))]
    problem = " ".join(said) or "its shapes can't be inferred"
    node = _NODE.search(text)
    return f"{node[1]} '{node[3]}': {problem}" if node else problem
