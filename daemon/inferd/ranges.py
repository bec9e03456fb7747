"""Which numbers of an element type a device holds, and whether a tensor's are among them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Number = int | float

# Up to so many bytes Python is quicker than numpy's start.
_FEW = 128


@dataclass(frozen=True, slots=True)
class Range:
    """What a device holds of elements of the numpy type ``dtype``: ``lo`` to ``hi``, both included, and NaN.

    ``why`` says where that comes from. Elements outside are ``refused``, or computed with as the device makes of them.
    """

    dtype: "np.dtype[np.generic]"
    lo: Number
    hi: Number
    why: str
    refused: bool = True

    def holds(self, data: bytes | memoryview) -> bool:
        """Whether all elements of ``data``, little-endian, are inside; there may be none."""
        smallest: Any
        largest: Any
        if not data:
            return True
        if len(data) <= _FEW:
            few: Any = memoryview(data)
            few = few.cast(self.dtype.char)
            smallest, largest = min(few), max(few)
        else:
            numbers = self._numbers(data)
            smallest, largest = np.minimum.reduce(numbers), np.maximum.reduce(numbers)
        if self.lo <= smallest and largest <= self.hi:
            return True
        # NaN is neither, wherever it is; with a first one Python sees no other.
        return self.dtype.kind == "f" and not self._outside(data).any()

    def first_outside(self, data: bytes | memoryview) -> tuple[int, Number]:
        """Where the first element outside is, counted row-major, and what it is; ``data`` has one."""
        at = int(np.argmax(self._outside(data)))
        return at, self._numbers(data)[at].item()

    def _numbers(self, data: bytes | memoryview) -> "npt.NDArray[Any]":
        return np.frombuffer(data, self.dtype)

    def _outside(self, data: bytes | memoryview) -> "npt.NDArray[np.bool_]":
        numbers = self._numbers(data)
        outside: npt.NDArray[np.bool_] = (numbers < self.lo) | (numbers > self.hi)
        return outside

    def __str__(self) -> str:
        return f"{self.lo}..{self.hi}"
