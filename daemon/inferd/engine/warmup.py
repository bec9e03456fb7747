"""Synthetic inferences before a model is ready: they prove that it runs, and measure how long a run takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from inferd.config.model import ModelConfig
from inferd.engine.pool import Pool
from inferd.engine.shape_check import ShapeCheck
from inferd.engine.slot import RunFailed
from inferd.engine.source import ModelSource
from inferd.errors import InvalidRequest, LoadFailed, listed
from inferd.synthetic_tensors import synthetic_tensor
from inferd.tensors import DType, Shape, Signature, Tensor, TensorSpec, elements

log = structlog.get_logger("inferd.engine")

# Doubling the rows must take less than this fraction of twice the time; otherwise even larger batches gain nothing.
_NO_GAIN = 0.97


@dataclass(frozen=True, slots=True)
class WarmUp:
    """``times`` are (rows of a run, nanoseconds of its last round); ``first`` is the duration of the very first run, 0
    if there was none."""

    times: tuple[tuple[int, float], ...] = ()
    first: float = 0.0


def uses_dynamic_batching(config: ModelConfig, signature: Signature) -> bool:
    """Whether requests may run as one batch: not in a model that keeps a sequence's state in the slot."""
    return config.batching.enabled and signature.max_batch > 1 and not signature.stateful


def max_batch_rows(config: ModelConfig, signature: Signature) -> int:
    """The maximum number of rows in a batch, 1 without dynamic batching."""
    if not uses_dynamic_batching(config, signature):
        return 1
    return min(signature.max_batch, config.batching.max_batch_rows or signature.max_batch)


def warm_up(source: ModelSource, signature: Signature, pool: Pool, check: ShapeCheck | None = None) -> WarmUp:
    """Run synthetic input through every slot, and time it.

    A model with fixed shapes must succeed. For a dynamic model the made-up shapes may be invalid, so a failure proves
    nothing. With dynamic batching, the rows are doubled as long as that raises throughput.
    """
    config = source.config.warmup
    if unknown := set(config.shapes) - {s.name for s in signature.inputs}:
        names = listed(s.name for s in signature.inputs)
        raise source.misconfigured(f"warmup.shapes.{min(unknown)}", "no such input", names)
    shapes = [_shape(source, spec, config.shapes.get(spec.name)) for spec in signature.inputs]
    times: list[tuple[int, float]] = []
    first = 0.0
    try:
        for rows in _row_counts(source.config, signature, shapes) if config.runs else ():
            inputs = [
                _zeros(spec, _with(shape, spec, rows)) for spec, shape in zip(signature.inputs, shapes, strict=True)
            ]
            if check is not None:
                check.check(source.name, inputs)
            took = [pool.run_all(inputs) for _ in range(config.runs)]
            first = first or took[0]
            times.append((rows or 1, took[-1]))
            if len(times) > 1 and times[-1][1] > _NO_GAIN * times[-2][1] * rows / times[-2][0]:
                break
    except (RunFailed, InvalidRequest) as error:
        problem = error.problem if isinstance(error, InvalidRequest) else str(error)
        fixed = all(s.static_shape is not None or s.name in config.shapes for s in signature.inputs)
        if fixed:
            raise LoadFailed(source.name, source.version, f"warm-up on {pool.device}: {problem}") from error
        log.warning("warm-up skipped", model=source.name, device=pool.device, problem=problem)
    return WarmUp(tuple(times), first)


def synthetic_inputs(source: ModelSource, signature: Signature) -> tuple[Tensor, ...]:
    """Inputs of the warm-up's shapes, a :func:`synthetic_tensor` per input port, always the same. Raises
    ConfigurationError for bad shapes in [warmup.shapes]."""
    given, chance = source.config.warmup.shapes, np.random.default_rng(0)
    return tuple(synthetic_tensor(s.dtype, _shape(source, s, given.get(s.name)), chance) for s in signature.inputs)


def _row_counts(config: ModelConfig, signature: Signature, shapes: Sequence[Shape]) -> Iterator[int]:
    """The numbers of rows to try in turn; 0 if the model has no batch."""
    if not uses_dynamic_batching(config, signature):
        yield shapes[0][signature.inputs[0].batch_axis] if signature.max_batch and shapes else 0
        return
    rows, most = 1, max_batch_rows(config, signature)
    while rows < most:
        yield rows
        rows *= 2
    yield most


def _with(shape: Shape, spec: TensorSpec, rows: int) -> Shape:
    """``shape`` with ``rows`` rows."""
    return (*shape[: spec.batch_axis], rows, *shape[spec.batch_axis + 1 :]) if rows else shape


def _shape(source: ModelSource, spec: TensorSpec, shape: Sequence[int] | None) -> Shape:
    concrete = tuple(shape) if shape is not None else spec.smallest()
    if not spec.accepts(concrete):
        problem = f"shape {list(concrete)} does not fit"
        raise source.misconfigured(f"warmup.shapes.{spec.name}", problem, spec.describe())
    return concrete


def _zeros(spec: TensorSpec, shape: Shape) -> Tensor:
    count = elements(shape)
    return Tensor(spec.dtype, shape, [b""] * count if spec.dtype is DType.BYTES else bytes(count * spec.dtype.itemsize))
