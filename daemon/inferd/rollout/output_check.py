"""Whether a version or configuration can replace another: by its signature and its outputs."""

import asyncio
from collections.abc import Sequence

from inferd.deployment.deployment import Deployment
from inferd.deployment.traffic_split import TrafficSplit
from inferd.engine.warmup import synthetic_inputs
from inferd.errors import Cancelled, InferdError, InferenceFailed, InternalFault, ModelUnavailable
from inferd.rollout.comparison import difference, newly_infinite, tensor_difference
from inferd.rollout.synthetic_request import ANSWER_SECONDS, answer
from inferd.tensors import Dim, Signature, Tensor, TensorSpec

# A question to the incumbent, None where it can't be asked, and the same to the candidate.
_Question = tuple[Sequence[Tensor] | None, Sequence[Tensor]]


async def output_mismatch(incumbent: Deployment, candidate: Deployment, tolerance: float | None) -> str:
    """Why the outputs of ``candidate`` can't replace those of ``incumbent``; "" if they can.

    Both get recent inputs of clients, if ``candidate`` accepts them, else synthetic input. With ``tolerance`` the
    numbers may differ by no more than that, in proportion to an output's largest element.
    """
    for question, asked in await asyncio.to_thread(_questions, incumbent, candidate):
        expected = await _asked(incumbent, question) if question is not None else None
        if isinstance(expected, InferenceFailed | InternalFault):
            # An input that the incumbent can't compute proves nothing.
            continue
        seen = await _asked(candidate, asked)
        if isinstance(seen, InferdError):
            # Synthetic input for the candidate alone may be input that no client would send.
            if question is not None and (problem := _failure(seen)):
                return problem
            continue
        before = expected if isinstance(expected, list) else []
        if problem := _unsound(incumbent.signature, candidate.signature, before, seen, tolerance):
            return problem
    return ""


async def configuration_mismatch(split: TrafficSplit) -> str:
    """How the outputs of the candidate, the same version in another configuration, differ from the incumbent's; "" if
    they agree as far as arithmetic in another order allows."""
    incumbent, candidate = split.incumbent, split.candidate
    execution = incumbent.config.execution
    lowered = execution.mode == "performance" or execution.precision != "auto"
    for inputs in await asyncio.to_thread(_samples, incumbent):
        expected = await _asked(incumbent, inputs)
        if isinstance(expected, InferdError):
            continue
        seen = await _asked(candidate, inputs)
        if isinstance(seen, InferdError):
            return f"it fails on inputs that the current settings answer: {seen}"
        if problem := difference(expected, seen, lowered=lowered):
            return problem
    return ""


def signature_mismatch(old: Signature, new: Signature) -> str:
    """Why requests for ``old`` can't go to ``new``; "" if they all can."""
    if unknown := {s.name for s in new.inputs} - {s.name for s in old.inputs}:
        return f"it needs an input '{min(unknown)}'"
    if old.max_batch > new.max_batch:
        return f"it takes {new.max_batch} rows, not {old.max_batch}"
    for kind, before, now in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        for spec in before:
            if (other := _named(now, spec.name)) is None:
                return f"it has no {kind} '{spec.name}'"
            if other.dtype is not spec.dtype:
                return f"its {kind} '{spec.name}' is {other.dtype.wire}, not {spec.dtype.wire}"
            if kind == "input" and not _covers(other.dims, spec.dims):
                return f"its input '{spec.name}' takes {other.describe()}, not {spec.describe()}"
    return ""


def _questions(incumbent: Deployment, candidate: Deployment) -> list[_Question]:
    """Generating large synthetic inputs takes a while, so this runs on a thread."""
    old, new = incumbent.signature, candidate.signature
    fitting: list[_Question] = [
        (one, other) for one in _samples(incumbent) if (other := _fitted(one, old, new)) is not None
    ]
    return fitting or [(None, synthetic_inputs(candidate.source, new))]


def _samples(deployment: Deployment) -> list[Sequence[Tensor]]:
    """Recent inputs of clients, else synthetic input."""
    return list(deployment.dispatcher.samples) or [synthetic_inputs(deployment.source, deployment.signature)]


def _fitted(inputs: Sequence[Tensor], old: Signature, new: Signature) -> list[Tensor] | None:
    """``inputs`` of ``old`` in the order of ``new``; None if ``new`` does not accept them."""
    by_name = {spec.name: tensor for spec, tensor in zip(old.inputs, inputs, strict=True)}
    fitted = []
    for spec in new.inputs:
        tensor = by_name.get(spec.name)
        if tensor is None or tensor.dtype is not spec.dtype or not spec.accepts(tensor.shape):
            return None
        fitted.append(tensor)
    if new.max_batch and new.rows_of(fitted) > new.max_batch:
        return None
    return fitted


async def _asked(deployment: Deployment, inputs: Sequence[Tensor]) -> list[Tensor] | InferdError:
    try:
        return await answer(deployment.dispatcher, deployment.signature, inputs)
    except InferdError as error:
        return error


def _failure(error: InferdError) -> str:
    """What ``error`` proves against a version; overload proves nothing."""
    if isinstance(error, Cancelled):
        return f"it did not respond within {ANSWER_SECONDS:g} s"
    if isinstance(error, InferenceFailed | InternalFault | ModelUnavailable):
        return f"it fails on recent client inputs: {error}"
    return ""


def _unsound(
    old: Signature, new: Signature, expected: Sequence[Tensor], seen: Sequence[Tensor], tolerance: float | None
) -> str:
    before = {spec.name: tensor for spec, tensor in zip(old.outputs, expected, strict=False)}
    for spec, tensor in zip(new.outputs, seen, strict=True):
        if tensor.dtype is not spec.dtype:
            return f"output '{spec.name}' is {tensor.dtype.wire}, but declared as {spec.dtype.wire}"
        if not _within(spec, tensor.shape):
            return f"output '{spec.name}' has shape {list(tensor.shape)}, but is declared as {spec.describe()}"
        other = before.get(spec.name)
        if other is None:
            continue
        if newly_infinite(other, tensor):
            return f"output '{spec.name}' has NaN or infinity where the current version has numbers"
        if tolerance is not None and (problem := tensor_difference(other, tensor, tolerance=tolerance)):
            return f"output '{spec.name}': {problem}"
    if tolerance is not None and (missing := before.keys() - {s.name for s in new.outputs}):
        return f"it has no output '{min(missing)}'"
    return ""


def _within(spec: TensorSpec, shape: Sequence[int]) -> bool:
    """Whether an output of ``shape`` is as declared; unlike an input it may well be empty."""
    dims = spec.dims
    return dims is None or (len(dims) == len(shape) and all(d.accepts(n) for d, n in zip(dims, shape, strict=True)))


def _named(specs: Sequence[TensorSpec], name: str) -> TensorSpec | None:
    return next((s for s in specs if name == s.name or name in s.aliases), None)


def _covers(wide: tuple[Dim, ...] | None, narrow: tuple[Dim, ...] | None) -> bool:
    """Whether every shape that ``narrow`` takes is one that ``wide`` takes."""
    if wide is None or narrow is None:
        return wide is None
    return len(wide) == len(narrow) and all(
        w.lo <= n.lo and (w.hi is None or (n.hi is not None and n.hi <= w.hi))
        for w, n in zip(wide, narrow, strict=True)
    )
