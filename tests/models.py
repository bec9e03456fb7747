"""Small models, built on the fly, and the model repositories that tests put them into."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inferd.engine.runtime import ov
from inferd.tensors import DType

_op = ov.opset13

# What OpenVINO calls a layer, or a tensor, that has no name: Parameter_17.
_UNNAMED = re.compile(r'(names?="[A-Z][A-Za-z]*)_(\d+)"')

_ELEMENT_TYPES = {
    DType.BOOL: ov.Type.boolean,
    DType.UINT8: ov.Type.u8,
    DType.UINT16: ov.Type.u16,
    DType.UINT32: ov.Type.u32,
    DType.UINT64: ov.Type.u64,
    DType.INT8: ov.Type.i8,
    DType.INT16: ov.Type.i16,
    DType.INT32: ov.Type.i32,
    DType.INT64: ov.Type.i64,
    DType.FP16: ov.Type.f16,
    DType.BF16: ov.Type.bf16,
    DType.FP32: ov.Type.f32,
    DType.FP64: ov.Type.f64,
    DType.BYTES: ov.Type.string,
}


def save(model: "ov.Model", repository: Path, name: str, version: int = 1, settings: str = "") -> None:
    """Write ``model`` into ``repository`` as that version of ``name``; ``settings`` is the text of its model.toml."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    _count_from_zero(folder / "model.xml")
    if settings:
        (repository / name / "model.toml").write_text(settings)


def _count_from_zero(file: Path) -> None:
    """Count what has no name of its own from 0 on.

    OpenVINO counts them over the whole process, and the same model would be another file each time: none of the caches
    would know it again, and each daemon would try and compile it again.
    """
    text = file.read_text()
    numbers = {number: place for place, number in enumerate(dict.fromkeys(n for _, n in _UNNAMED.findall(text)))}
    file.write_text(_UNNAMED.sub(lambda found: f'{found[1]}_{numbers[found[2]]}"', text))


def identity(dtype: DType, shape: Sequence[int]) -> "ov.Model":
    """``x`` -> ``x``, bit by bit; -1 in ``shape`` stands for any size.

    One name, because any operation in between would cost bits: OpenVINO's CPU plugin
    computes 64-bit types in 32 bits.
    """
    x = _parameter("x", dtype, shape)
    return ov.Model([_op.result(x)], [x], "identity")


def sum_and_difference(shape: Sequence[int]) -> "ov.Model":
    """``left``, ``right`` -> ``sum``, ``difference``, all FP32 of ``shape``."""
    left, right = _parameter("left", DType.FP32, shape), _parameter("right", DType.FP32, shape)
    results = [_named("sum", _op.add(left, right)), _named("difference", _op.subtract(left, right))]
    return ov.Model(results, [left, right], "sum_and_difference")


def negative(shape: Sequence[int]) -> "ov.Model":
    """``x`` -> ``y`` = -``x``, FP32 of ``shape``."""
    x = _parameter("x", DType.FP32, shape)
    return ov.Model([_named("y", _op.negative(x))], [x], "negative")


def slow(steps: int = 100) -> "ov.Model":
    """``x`` -> ``y`` = ``x``, FP32 [1], by a detour of ``steps`` nodes of some milliseconds each.

    A cancelled run ends between two nodes.
    """
    size = 512
    x = _parameter("x", DType.FP32, [1])
    value = _op.broadcast(x, _op.constant([size, size]))
    # Rows of the mean of 512 equal numbers: exact, because 512 is a power of two.
    mean = _op.constant(np.full((size, size), 1 / size, np.float32))
    for _ in range(steps):
        value = _op.matmul(value, mean, False, False)
    y = _op.reshape(_op.reduce_max(value, _op.constant([0, 1]), False), _op.constant([1]), False)
    return ov.Model([_named("y", y)], [x], "slow")


def _parameter(name: str, dtype: DType, shape: Sequence[int]) -> "ov.Node":
    return _named(name, _op.parameter(ov.PartialShape(list(shape)), _ELEMENT_TYPES[dtype]))


def _named(name: str, node: "ov.Node") -> "ov.Node":
    node.output(0).set_names({name})
    return node
