"""State between the requests of a sequence: checks model.toml's declarations against the model."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from inferd.config.model import ModelConfig, StateTensor
from inferd.engine.source import ModelSource
from inferd.errors import listed
from inferd.tensors import DType, Shape, Signature, StateLink, Tensor, TensorSpec, elements

# Each such sequence takes an infer request with all its tensors; declared state takes a few kilobytes.
_MOST_WITH_OWN_STATE = 16
_MOST_WITH_DECLARED_STATE = 1024


def most_sequences(config: ModelConfig, signature: Signature) -> int:
    """The limit on live sequences."""
    return config.sequences.max_active or (_MOST_WITH_OWN_STATE if signature.stateful else _MOST_WITH_DECLARED_STATE)


def batch_axes(config: ModelConfig) -> Mapping[str, int]:
    """The batch axis by tensor name, for tensors where it is not the first dimension."""
    declared = config.sequences.state
    return {name: s.batch_axis for name, s in declared.items()} | {s.output: s.batch_axis for s in declared.values()}


def link(source: ModelSource, signature: Signature, *, stateful: bool) -> Signature:
    """``signature`` with its states. Raises ConfigurationError if a declaration does not fit the model."""
    declared = source.config.sequences.state
    if stateful and declared:
        raise source.misconfigured("sequences.state", "the model keeps its state itself", "no state tensors")
    states = tuple(_linked(source, signature, name, tensor) for name, tensor in declared.items())
    return replace(signature, states=states, stateful=stateful)


def _linked(source: ModelSource, signature: Signature, name: str, declared: StateTensor) -> StateLink:
    key = f"sequences.state.{name}"
    into = _port(source, key, name, signature.inputs)
    out_of = _port(source, f"{key}.output", declared.output, signature.outputs)
    spec, fed_by = signature.inputs[into], signature.outputs[out_of]
    if spec.dtype is DType.BYTES or fed_by.dtype is not spec.dtype:
        problem = f"output '{fed_by.name}' is {fed_by.dtype.wire} and input '{name}' {spec.dtype.wire}"
        raise source.misconfigured(key, problem, "numbers of one type")
    shape = _one_row(spec, signature.max_batch)
    if shape is None or shape != _one_row(fed_by, signature.max_batch):
        problem = f"input '{name}' is {spec.describe()} and output '{fed_by.name}' {fed_by.describe()}"
        raise source.misconfigured(key, problem, "one fixed shape; see [shapes]")
    filled = _filled(source, key, spec.dtype, declared.initial, shape)
    if spec.checked is not None and not spec.checked.holds(filled):
        problem = f"{declared.initial:g} is out of range: {spec.checked.why}"
        raise source.misconfigured(f"{key}.initial", problem, str(spec.checked))
    return StateLink(into, out_of, Tensor(spec.dtype, shape, filled))


def _filled(source: ModelSource, key: str, dtype: DType, value: float, shape: Shape) -> bytes:
    """The elements of a tensor of ``shape`` filled with ``value``."""
    # BF16 has no numpy type: it is the upper half of the same number in float32.
    element = np.dtype(np.float32) if dtype is DType.BF16 else dtype.numpy
    with np.errstate(over="ignore", invalid="ignore"):
        filled = np.full(elements(shape), value).astype(element)
    if not np.isfinite(filled).all() or (element.kind != "f" and (filled != value).any()):
        raise source.misconfigured(f"{key}.initial", f"no {dtype.wire} holds {value:g}")
    return (filled.view(np.uint32) >> 16).astype(np.uint16).tobytes() if dtype is DType.BF16 else filled.tobytes()


def _port(source: ModelSource, key: str, name: str, specs: tuple[TensorSpec, ...]) -> int:
    for index, spec in enumerate(specs):
        if name == spec.name:
            return index
    raise source.misconfigured(key, f"the model has no '{name}'", listed(s.name for s in specs))


def _one_row(spec: TensorSpec, max_batch: int) -> tuple[int, ...] | None:
    """The shape with one row, None if it is not fixed."""
    if spec.dims is None:
        return None
    rows = {spec.batch_axis} if max_batch else set()
    if not all(d.static or axis in rows for axis, d in enumerate(spec.dims)):
        return None
    return tuple(1 if axis in rows else d.lo for axis, d in enumerate(spec.dims))
