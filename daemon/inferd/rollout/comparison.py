"""Whether two configurations of a model answer alike: as far as arithmetic in another order allows."""

from collections.abc import Sequence

import numpy as np

from inferd.tensors import DType, Tensor

# Differences in proportion to an output's largest element. Sums in another order, split over other
# threads, differ in the last digits; layers that amplify them make it some more.
_TOLERANCE = {
    DType.FP64: 1e-3,
    DType.FP32: 1e-3,
    DType.FP16: 2e-2,
    DType.BF16: 5e-2,
}
# Where the arithmetic itself may be of lower precision than what carries the result.
_LOWERED = 5e-2
# An output that is all smaller is compared as if this were its largest element: zeros need not be exact.
_NEXT_TO_NOTHING = 1e-6
# Of whole numbers, such as the index of a largest element, so many may fall on the other side of a tie.
_MOST_UNEQUAL = 0.01


def difference(
    expected: Sequence[Tensor], seen: Sequence[Tensor], *, lowered: bool = False, tolerance: float | None = None
) -> str:
    """What tells ``seen`` from ``expected``, both a tensor an output; "" where they agree. The rest is as
    :func:`tensor_difference` has it."""
    for place, (one, other) in enumerate(zip(expected, seen, strict=True)):
        if problem := tensor_difference(one, other, lowered=lowered, tolerance=tolerance):
            return f"output {place} {problem}"
    return ""


def tensor_difference(expected: Tensor, seen: Tensor, *, lowered: bool = False, tolerance: float | None = None) -> str:
    """What tells ``seen`` from ``expected``, as what follows an output's name; "" where they agree.

    ``lowered`` says that the device may compute in a lower precision than the outputs have. ``tolerance`` is
    the difference to allow, in proportion to an output's largest element, where it is not to be told by the type.
    """
    if (expected.dtype, expected.shape) != (seen.dtype, seen.shape):
        return f"is {seen.dtype.wire} {list(seen.shape)}, not {expected.dtype.wire} {list(expected.shape)}"
    return _unlike(expected, seen, lowered, tolerance)


def newly_infinite(expected: Tensor, seen: Tensor) -> bool:
    """Whether ``seen`` has infinities or NaNs where ``expected`` has numbers; of other shapes, any against none."""
    if expected.dtype not in _TOLERANCE or seen.dtype not in _TOLERANCE:
        return False
    before, now = np.isfinite(_numbers(expected)), np.isfinite(_numbers(seen))
    if expected.shape == seen.shape:
        return bool((before & ~now).any())
    return bool(before.all() and not now.all())


def _unlike(one: Tensor, other: Tensor, lowered: bool, given: float | None) -> str:
    if one.dtype is DType.BYTES:
        return "" if list(one.data) == list(other.data) else "has other strings"  # type: ignore[arg-type]  # listed
    a, b = _numbers(one), _numbers(other)
    tolerance = _TOLERANCE.get(one.dtype)
    if tolerance is None:
        unequal = float(np.mean(a != b)) if a.size else 0.0
        return f"differs in {unequal:.1%} of its elements" if unequal > _MOST_UNEQUAL else ""
    finite = np.isfinite(a)
    if (finite != np.isfinite(b)).any() or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "has other infinities or NaNs"
    if not finite.any():
        return ""
    with np.errstate(over="ignore"):
        apart, largest = float(np.abs(a[finite] - b[finite]).max()), float(np.abs(a[finite]).max())
    allowed = max(tolerance, _LOWERED if lowered else 0.0) if given is None else given
    if apart <= allowed * max(largest, _NEXT_TO_NOTHING):
        return ""
    return f"is off by {apart:.3g} where its largest element is {largest:.3g}"


def _numbers(tensor: Tensor) -> "np.ndarray[tuple[int], np.dtype[np.generic]]":
    flat = np.frombuffer(tensor.data, tensor.dtype.numpy)  # type: ignore[arg-type]  # not BYTES
    # Signalling NaNs become quiet ones, which is as good here.
    with np.errstate(invalid="ignore"):
        if tensor.dtype is DType.BF16:
            return (flat.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return flat.astype(np.float64) if tensor.dtype in _TOLERANCE else flat
