"""Which numbers of an element type a device can represent, and whether a tensor's are among them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Number = int | float

# Up to this many bytes Python is faster than numpy's start.
_FEW = 128


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers of the numpy type ``dtype`` that a device can represent: ``lo`` to ``hi``, inclusive, and NaN.

    ``why`` gives the reason. Elements outside are ``refused``, or computed with as the device converts them.
    """

    dtype: "np.dtype[np.generic]"
    lo: Number
    hi: Number
    why: str
    refused: bool = True

    def holds(self, data: bytes | memoryview) -> bool:
        """Whether all elements of ``data``, little-endian, are inside; ``data`` may be empty."""
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
        # NaN is neither, at any position; with a NaN first, Python's min and max see no other element.
        return self.dtype.kind == "f" and not self._outside(data).any()

    def first_outside(self, data: bytes | memoryview) -> tuple[int, Number]:
        """Position (row-major) and value of the first element outside; ``data`` has one."""
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
