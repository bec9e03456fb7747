"""Synthetic tensor elements, the same each time from the same generator."""

import numpy as np

from inferd.tensors import DType, Shape, Tensor, elements


def synthetic_tensor(dtype: DType, shape: Shape, chance: np.random.Generator) -> Tensor:
    """Floats of 0..1; 0 or 1 for integers, which are harmless as an index or a token; short strings."""
    if dtype is DType.BYTES:
        return Tensor(dtype, shape, [b"a" * int(n) for n in chance.integers(1, 9, elements(shape))])
    return Tensor(dtype, shape, synthetic_numbers(dtype, shape, chance))


def synthetic_numbers(dtype: DType, shape: Shape, chance: np.random.Generator, largest: int = 1) -> bytes:
    """Elements of a tensor of ``dtype``, which is not BYTES, row-major and little-endian: floats of 0..1, whole numbers
    of 0..``largest``."""
    count = elements(shape)
    if dtype is DType.BF16:
        # The upper halves of FP32.
        return _little((chance.random(count, np.float32).view(np.uint32) >> 16).astype(np.uint16))
    if dtype.numpy.kind == "f":
        return _little(chance.random(count).astype(dtype.numpy))
    return _little(chance.integers(0, largest + 1, count).astype(dtype.numpy))


def _little(array: "np.ndarray[tuple[int], np.dtype[np.generic]]") -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
