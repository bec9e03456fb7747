"""Changes a model before it is compiled, so that outputs that a run would leave unwritten get the right values.

An unwritten output holds another request's data. Models without such operations (see
:mod:`inferd.engine.skipped_ops`) are not changed.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from inferd.engine.runtime import ov
from inferd.engine.skipped_ops import InputDim, NodePath, constant, is_sequence, node_label, skipping_dims, walk

REVISION = 1
"""The revision of these repairs: blobs of another revision are compiled again."""

_op = ov.opset15

# In effect infinity: the CPU computes integers in 32 bits.
_ALL = 2**31 - 1

Written = frozenset[tuple[NodePath, str]]
"""Operations whose output is right whether or not they run, by path and friendly name."""

_WATCH = "inferd/watch/"
# Over padding alone, or over no keys, the result is an empty sum: 0.
_ZERO_IS_RIGHT = frozenset(
    {"BinaryConvolution", "Convolution", "GroupConvolution", "ScaledDotProductAttention", "SearchSorted"}
)


class Unrepairable(Exception):
    """``str()`` names the operation, and says why its output can't be made right."""


def repair(model: "ov.Model") -> Written:
    """Make ``model`` right for operations with empty operands and loops without iterations; changed in place.

    A loop without iterations returns its initial values, and an empty tensor if it concatenates a value per iteration.
    A recurrent layer over no steps returns its initial state, and TopK of nothing is empty. If no answer is right, such
    as for the first of no rows, the output is zeros, and an additional output of the model reports it (see
    :func:`watched`). Inside of loops and branches it is zeros without a report, as the CPU returns for an index out of
    range.

    An empty input of the model itself may still leave an output unwritten, see :mod:`inferd.engine.empty_inputs`.
    Raises Unrepairable.
    """
    skipped = _skipped(model)
    written, watch = set(), {}
    for path, node in list(walk(model)):
        key = (path, node.get_friendly_name())
        found = skipped.get(key, [])
        if _made_right(node, found):
            written.add(key)
        elif (some := _with_a_watch(node, found)) is not None:
            written.add(key)
            if not path and node.get_type_name() not in _ZERO_IS_RIGHT:
                watch[node_label(node)] = some
    if watch:
        _add_watch(model, watch)
    if written:
        model.validate_nodes_and_infer_types()
    return frozenset(written)


def watched(outputs: Iterable["ov.Output"]) -> list[str]:
    """The operations, in order, for which a repaired model's last output reports whether their operands had elements;
    empty if there is no such output."""
    for output in outputs:
        for name in output.names:
            if name.startswith(_WATCH):
                return list(json.loads(urlsafe_b64decode(name.removeprefix(_WATCH))))
    return []


def _add_watch(model: "ov.Model", watch: Mapping[str, "ov.Node"]) -> None:
    flags = [_op.unsqueeze(_op.convert(some, ov.Type.i32), _numbers(0)) for some in watch.values()]
    # An output's name is all that survives in a cached blob. It must be one word.
    name = _WATCH + urlsafe_b64encode(json.dumps(list(watch)).encode()).decode()
    result = _op.result(_op.concat(flags, 0))
    result.output(0).get_tensor().set_names({name})
    model.add_results([result])


def _skipped(model: "ov.Model") -> Mapping[tuple[NodePath, str], list[InputDim]]:
    """The dimensions that may be 0 although no input of the model is empty, by operation."""
    if not any(skipping_dims(node) for _, node in walk(model)):
        return {}
    filled = model.clone()
    try:
        filled.reshape({port: _not_empty(port.partial_shape) for port in filled.inputs})
    except RuntimeError:
        # The model does not take such shapes: use the declared ones.
        filled = model
    return {(path, node.get_friendly_name()): found for path, node in walk(filled) if (found := skipping_dims(node))}


def _not_empty(shape: "ov.PartialShape") -> "ov.PartialShape":
    if shape.rank.is_dynamic:
        return shape
    return ov.PartialShape([dim if dim.is_static or dim.get_min_length() else at_least_one(dim) for dim in shape])


def at_least_one(dim: "ov.Dimension") -> "ov.Dimension":
    """``dim``, which is not static, without 0."""
    return ov.Dimension(max(1, dim.get_min_length()), dim.get_max_length())


def _made_right(node: "ov.Node", skipped: Sequence[InputDim]) -> bool:
    """Whether ``node``'s outputs needed changing, and were changed. ``skipped`` are the dimensions that may be 0
    although no input of the model is empty."""
    kind = node.get_type_name()
    if kind == "Loop":
        return _turns(node)
    if kind == "TensorIterator":
        return bool(found := skipping_dims(node)) and _steps(node, found)
    if is_sequence(node):
        return bool(found := skipping_dims(node)) and _states(node, found)
    if kind == "Gather":
        return _none_ever(node.output(0))
    if kind == "Unique" and skipped:
        return _distinct(node)
    return False


def _with_a_watch(node: "ov.Node", skipped: Sequence[InputDim]) -> "ov.Node | None":
    """Like :func:`_made_right`, if there may be no right answer: a flag whether there is; None if nothing changed."""
    if node.get_type_name() == "TopK":
        count = constant(node.input_value(1))
        if count is None or not count.all():
            return _best(node)
    # Include dimensions that only an empty model input makes 0, as the node is not changed twice.
    return _zeros(node, skipping_dims(node)) if skipped else None


# -- loops ----------------------------------------------------------------------------


def _turns(loop: "ov.Node") -> bool:
    """Without iterations, a Loop's concatenated output keeps the length of the run before: cut it to 0."""
    count, first = constant(loop.input_value(0)), constant(loop.input_value(1))
    if count is not None and first is not None and count.all() and first.all():
        return False
    if count is None:
        # In ONNX a negative count means none; OpenVINO would loop for ever.
        none = _op.convert_like(_op.constant(np.int64(0)), loop.input_value(0))
        loop.input(0).replace_source_output(_op.maximum(loop.input_value(0), none).output(0))
    ran = _op.logical_and(
        _op.not_equal(_vector(loop.input_value(0)), _op.convert_like(_numbers(0), loop.input_value(0))),
        _vector(loop.input_value(1)),
    )
    carried = {d.body_value_index for d in loop.get_input_descriptions() if hasattr(d, "body_value_index")}
    changed = count is None
    for described in loop.get_output_descriptions():
        output = loop.output(described.output_index)
        if not output.get_target_inputs():
            continue
        if hasattr(described, "axis"):
            shape = output.partial_shape
            nothing = [
                0 if at == described.axis or dim.is_dynamic else dim.get_length() for at, dim in enumerate(shape)
            ]
            keep = _op.select(ran, _numbers(_ALL), _numbers(0))
            _cut(output, described.axis, keep, ran, nothing)
            changed = True
        elif described.body_value_index not in carried:
            changed = _handed_on(loop, described) or changed
    return changed


def _handed_on(loop: "ov.Node", described: "object") -> bool:
    """Handle a last value that is not carried: without iterations it exists only if the body passes an input
    through."""
    result = loop.get_function().get_results()[described.body_value_index]  # type: ignore[attr-defined]
    source = result.input_value(0).get_node()
    parameters = loop.get_function().get_parameters()
    for given in loop.get_input_descriptions():
        same = parameters[given.body_parameter_index].get_friendly_name() == source.get_friendly_name()
        if same and type(given).__name__ == "InvariantInputDescription":
            _redirect(loop.output(described.output_index), loop.input_value(given.input_index))  # type: ignore[attr-defined]
            return True
    raise Unrepairable(
        f"Loop '{loop.get_friendly_name()}' may run no iteration, and its output {described.output_index} "  # type: ignore[attr-defined]
        "is not carried between iterations, so it could then return another request's data"
    )


def _steps(iterator: "ov.Node", sliced: Sequence[InputDim]) -> bool:
    """A TensorIterator over nothing returns its initial values. The CPU raises instead, so it gets one step, whose
    results are discarded. False if the right value of some output is unknown."""
    takes, gives = iterator.get_input_descriptions(), iterator.get_output_descriptions()
    slices = [d for d in takes if hasattr(d, "axis")]
    initial = {d.body_value_index: iterator.input_value(d.input_index) for d in takes if hasattr(d, "body_value_index")}
    for given in gives:
        shape = iterator.output(given.output_index).partial_shape
        carried = initial.get(given.body_value_index)
        if not hasattr(given, "axis") and (carried is None or carried.partial_shape != shape):
            return False
    if any(abs(d.stride) != 1 or d.part_size != 1 for d in slices):
        return False
    some = _any(iterator, sliced)
    for taken in slices:
        source = iterator.input_value(taken.input_index)
        axis = taken.axis % len(source.partial_shape)
        missing = _op.select(some, _numbers(0), _numbers(1))
        size = _op.scatter_update(_op.shape_of(source), _numbers(axis), missing, _numbers(0))
        step = _op.broadcast(_op.convert(_op.constant(np.float32(0)), source.element_type), size)
        iterator.input(taken.input_index).replace_source_output(_op.concat([source, step], axis).output(0))
    for given in gives:
        output = iterator.output(given.output_index)
        if hasattr(given, "axis"):
            kept = [0 if dim.is_dynamic else dim.get_length() for dim in output.partial_shape]
            nothing = [0 if at == given.axis else n for at, n in enumerate(kept)]
            _cut(output, given.axis, _op.select(some, _numbers(_ALL), _numbers(0)), some, nothing)
        else:
            chosen = _op.select(some, output, initial[given.body_value_index])
            _redirect(output, chosen.output(0), chosen)
    return True


def _cut(output: "ov.Output", axis: int, keep: "ov.Node", ran: "ov.Node", nothing: Sequence[int]) -> None:
    """``output`` cut to ``keep`` along ``axis``, and of the shape ``nothing`` unless it ``ran``."""
    cut = _op.slice(output, _numbers(0), keep, _numbers(1), _numbers(axis))
    shaped = cut
    if len(nothing) > 1:
        shaped = _op.reshape(cut, _op.select(ran, _op.shape_of(cut), _numbers(*nothing)), False)
    _redirect(output, shaped.output(0), cut)


# -- operations with an empty operand -------------------------------------------------


def _none_ever(picked: "ov.Output") -> bool:
    """Gather with a constant empty result kills the process that compiles it: replace it with a constant."""
    fixed = picked.partial_shape.is_static and picked.element_type != ov.Type.string
    if not fixed or 0 not in picked.shape or not picked.get_target_inputs():
        return False
    _redirect(picked, _op.constant(np.zeros(tuple(picked.shape), np.float32), picked.element_type).output(0))
    return True


def _states(layer: "ov.Node", steps: Sequence[InputDim]) -> bool:
    """The state after no steps is the initial state."""
    some = _any(layer, steps)
    for output, initial in zip(list(layer.outputs())[1:], layer.input_values()[1:], strict=False):
        if output.get_target_inputs():
            chosen = _op.select(some, output, initial)
            _redirect(output, chosen.output(0), chosen)
    return True


def _best(ranking: "ov.Node") -> "ov.Node":
    """TopK with k = 0 is empty, but the CPU raises, and kills the process the next time. Returns a flag that is false
    if elements of an empty axis were requested."""
    data, count = ranking.input_value(0), ranking.input_value(1)
    # The rank is known: OpenVINO can't compile TopK of an unknown rank.
    axis = int(ranking.get_attributes()["axis"]) % len(data.partial_shape)
    asked = _op.convert(_vector(count), ov.Type.i64)
    there = _op.gather(_op.shape_of(data), _numbers(axis), _numbers(0))
    keep = _op.minimum(asked, there)
    outputs = [output for output in ranking.outputs() if output.get_target_inputs()]
    at_least_one = _op.maximum(count, _op.convert_like(_op.constant(np.int64(1)), count))
    ranking.input(1).replace_source_output(at_least_one.output(0))
    for output in outputs:
        cut = _op.slice(output, _numbers(0), keep, _numbers(1), _numbers(axis))
        _redirect(output, cut.output(0), cut)
    answered = _op.logical_or(_op.greater(there, _numbers(0)), _op.less_equal(asked, _numbers(0)))
    return _op.squeeze(answered, _numbers(0))


def _distinct(unique: "ov.Node") -> bool:
    """The distinct elements of nothing: the operation gets one element, which is then cut off."""
    data = unique.input_value(0)
    if unique.get_input_size() > 1 or data.element_type == ov.Type.string:
        raise _without_answer(unique)
    some = _any(unique, skipping_dims(unique))
    filler = _op.slice(
        _op.convert(_op.constant(np.zeros(1, np.float32)), data.element_type),
        _numbers(0),
        _op.select(some, _numbers(0), _numbers(1)),
        _numbers(1),
        _numbers(0),
    )
    flat = _op.reshape(data, _op.reduce_prod(_op.shape_of(data), _numbers(0), keep_dims=True), False)
    unique.input(0).replace_source_output(_op.concat([flat, filler], 0).output(0))
    keep = _op.select(some, _numbers(_ALL), _numbers(0))
    for output in unique.outputs():
        if output.get_target_inputs():
            cut = _op.slice(output, _numbers(0), keep, _numbers(1), _numbers(0))
            _redirect(output, cut.output(0), cut)
    return True


def _zeros(node: "ov.Node", skipped: Sequence[InputDim]) -> "ov.Node":
    """Put zeros where ``node`` does not run; returns a flag whether it runs or its output is empty."""
    some = answered = _any(node, skipped)
    for output in node.outputs():
        if output.get_target_inputs():
            if output.element_type == ov.Type.string:
                raise _without_answer(node)
            zero = _op.convert(_op.constant(np.float32(0)), output.element_type)
            chosen = _op.select(some, output, zero)
            _redirect(output, chosen.output(0), chosen)
            if output.partial_shape.is_dynamic:
                least = _op.reduce_min(_op.shape_of(chosen), _numbers(0), keep_dims=False)
                answered = _op.logical_or(answered, _op.equal(least, _op.constant(np.int64(0))))
    return answered


def _without_answer(node: "ov.Node") -> Unrepairable:
    return Unrepairable(f"{node_label(node)} may have an empty operand, and could then return another request's data")


# -- parts ----------------------------------------------------------------------------


def _any(node: "ov.Node", dims: Sequence[InputDim]) -> "ov.Node":
    """Whether none of the dimensions ``dims`` of its inputs is 0; a scalar."""
    ports = sorted({port for port, _ in dims})
    sizes = [
        _op.gather(
            _op.shape_of(node.input_value(port)), _numbers(*(axis for p, axis in dims if p == port)), _numbers(0)
        )
        for port in ports
    ]
    least = _op.reduce_min(_op.concat(sizes, 0) if len(sizes) > 1 else sizes[0], _numbers(0), keep_dims=False)
    return _op.greater(least, _op.constant(np.int64(0)))


def _vector(value: "ov.Output") -> "ov.Node":
    """A scalar, or a vector of one element, as the latter."""
    return _op.reshape(value, _numbers(1), False)


def _numbers(*numbers: int) -> "ov.Node":
    return _op.constant(np.array(numbers, np.int64))


def _redirect(old: "ov.Output", new: "ov.Output", made: "ov.Node | None" = None) -> None:
    """Replace ``old`` with ``new`` in all consumers except ``made``, which computes ``new`` from it; moves the
    names."""
    names = old.get_names()
    for target in old.get_target_inputs():
        if made is None or target.get_node().get_name() != made.get_name():
            target.replace_source_output(new)
    if names:
        old.get_tensor().set_names(set())
        new.get_tensor().add_names(names)
