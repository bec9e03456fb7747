"""The inputs of requests: synthetic, from a model's signature, or given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inferd.errors import InvalidRequest
from inferd.synthetic_tensors import synthetic_numbers
from inferd.tensors import DType, Shape, TensorSpec, elements

_STRING = 16


@dataclass(frozen=True, slots=True)
class Feed:
    """One input as sent: ``data`` is row-major and little-endian, BYTES with a length before each element."""

    name: str
    dtype: DType
    shape: Shape
    data: bytes

    def describe(self) -> str:
        return f"{self.name} {self.dtype.wire} [{','.join(map(str, self.shape))}]"


def synthetic_inputs(
    model: str, specs: tuple[TensorSpec, ...], shapes: Mapping[str, Shape], seed: int
) -> tuple[Feed, ...]:
    """Random elements for each of ``specs``: floats of 0 to 1, bytes of all values, whole numbers of 0 or 1, short
    strings.

    A first dimension that the model leaves open becomes 1; any other open one must be in ``shapes``, by input.
    Raises InvalidRequest if it is not, or if a shape there does not fit.
    """
    chance = np.random.default_rng(seed)
    if strange := set(shapes) - {s.name for s in specs}:
        raise InvalidRequest(model, f"a shape is given for '{min(strange)}', but there is no such input")
    return tuple(
        Feed(spec.name, spec.dtype, shape, _random(spec.dtype, shape, chance))
        for spec in specs
        for shape in (_shape(model, spec, shapes.get(spec.name)),)
    )


def given_inputs(model: str, specs: tuple[TensorSpec, ...], arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Feed, ...]:
    """``arrays`` by input, their elements converted to those of ``specs`` if nothing is lost.

    An array that the metadata does not name is sent unchanged: the metadata hides state that the server would
    otherwise carry. Raises InvalidRequest for an input that is missing, or has other elements or another shape.
    """
    if missing := sorted({s.name for s in specs} - set(arrays)):
        raise InvalidRequest(model, f"input '{missing[0]}' is missing from the arrays {sorted(arrays)}")
    known = {s.name: s for s in specs}
    return tuple(
        _feed(model, known.get(name) or _as_it_is(model, name, array), array) for name, array in arrays.items()
    )


def _as_it_is(model: str, name: str, array: npt.NDArray[Any]) -> TensorSpec:
    dtype = next((t for t in DType if t is not DType.BF16 and t.numpy == array.dtype), None)
    if dtype is None:
        raise InvalidRequest(model, f"input '{name}' is an array of {array.dtype}, which the protocol does not have")
    return TensorSpec(name, dtype, None)


def _feed(model: str, spec: TensorSpec, array: npt.NDArray[Any]) -> Feed:
    if not spec.accepts(array.shape):
        raise InvalidRequest(model, f"input '{spec.name}' is {spec.describe()}, but {list(array.shape)} is given")
    if spec.dtype is DType.BYTES:
        return Feed(spec.name, spec.dtype, array.shape, _with_lengths([_bytes(e) for e in array.ravel()]))
    fits = array.dtype == spec.dtype.numpy or (
        spec.dtype is not DType.BF16 and np.can_cast(array.dtype, spec.dtype.numpy, "safe")
    )
    if not fits:
        raise InvalidRequest(model, f"input '{spec.name}' is {spec.dtype.wire}, but {array.dtype} is given")
    return Feed(spec.name, spec.dtype, array.shape, _little(array.astype(spec.dtype.numpy, copy=False)))


def _shape(model: str, spec: TensorSpec, wanted: Shape | None) -> Shape:
    if wanted is not None:
        if not spec.accepts(wanted):
            raise InvalidRequest(model, f"input '{spec.name}' is {spec.describe()}, but {list(wanted)} is given")
        return wanted
    dims = spec.dims or ()
    if any(not d.static for d in dims[1:]):
        raise InvalidRequest(
            model, f"input '{spec.name}' is {spec.describe()}: set its shape with --shape {spec.name}=N,N"
        )
    return tuple(d.lo if d.static else 1 for d in dims)


def _random(dtype: DType, shape: Shape, chance: np.random.Generator) -> bytes:
    if dtype is DType.BYTES:
        return _with_lengths([bytes(row) for row in chance.integers(97, 123, (elements(shape), _STRING), np.uint8)])
    # Small indices are valid in tables of any size, and any byte is a valid pixel.
    return synthetic_numbers(dtype, shape, chance, largest=255 if dtype is DType.UINT8 else 1)


def _with_lengths(texts: list[bytes]) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _bytes(element: Any) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


def _little(array: npt.NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
