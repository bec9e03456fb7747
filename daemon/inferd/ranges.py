"""Which numbers of an element type a device holds, and whether a tensor's are among them."""

from dataclasses import dataclass

import numpy as np

Number = int | float


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
        numbers = np.frombuffer(data, self.dtype)
        if not numbers.size:
            return True
        if self.dtype.kind == "f":
            # These pass over NaN, which compares as neither.
            return not (np.fmin.reduce(numbers) < self.lo or np.fmax.reduce(numbers) > self.hi)
        return bool(np.maximum.reduce(numbers) <= self.hi and np.minimum.reduce(numbers) >= self.lo)

    def first_outside(self, data: bytes | memoryview) -> tuple[int, Number]:
        """Where the first element outside is, counted row-major, and what it is; ``data`` has one."""
        numbers = np.frombuffer(data, self.dtype)
        at = int(np.argmax((numbers < self.lo) | (numbers > self.hi)))
        return at, numbers[at].item()

    def __str__(self) -> str:
        return f"{self.lo}..{self.hi}"
