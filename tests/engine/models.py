"""Small models with a known behaviour, and what stands around them when they are loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inferd.config.model import parse
from inferd.content import Bounds, FileSet
from inferd.engine.cache import BlobCache
from inferd.engine.model import Engine
from inferd.engine.runtime import ov
from inferd.engine.source import ModelSource
from inferd.tensors import DType, Placed, Tensor

op = ov.opset13


def parameter(shape: Any, dtype: Any = ov.Type.f32, name: str = "x") -> Any:
    """An input; without a ``name`` the port has none."""
    node = op.parameter(ov.PartialShape(shape), dtype)
    if name:
        node.output(0).set_names({name})
    return node


def model(outputs: dict[str, Any], inputs: Sequence[Any]) -> ov.Model:
    """A model whose outputs go by the names of ``outputs``."""
    results = []
    for name, node in outputs.items():
        result = op.result(node)
        if name:
            result.output(0).set_names({name})
        results.append(result)
    return ov.Model(results, list(inputs), "small")


def identity(shape: Any = (4,), dtype: Any = ov.Type.f32, name: str = "x") -> ov.Model:
    """Gives back what it gets, of any type; as input and output are one tensor, they share their name."""
    x = parameter(shape, dtype, name)
    return model({name: x}, [x])


def scaled(factor: float, shape: Any = (4,)) -> ov.Model:
    """Gives ``factor`` times what it gets."""
    x = parameter(shape)
    return model({"y": op.multiply(x, op.constant(np.float32(factor)))}, [x])


def broadcasting() -> ov.Model:
    """Repeats ``x`` of 4 elements to the shape that the input ``to`` holds, and raises where that does not end in 4.

    Not a Reshape, though it is the obvious model that fails depending on its data: after one
    failure the CPU plugin takes the same impossible shape without a word.
    """
    x, to = parameter([4]), parameter([2], ov.Type.i64, "to")
    return model({"y": op.broadcast(x, to)}, [x, to])


def slow(products: int = 200) -> ov.Model:
    """Some tens of milliseconds of matrix products, which can be cancelled between two of them."""
    x = parameter([256, 256])
    node = x
    weights = op.constant(np.full((256, 256), 1 / 256, np.float32))
    for _ in range(products):
        node = op.matmul(node, weights, False, False)
    return model({"y": node}, [x])


def stateful() -> ov.Model:
    """Adds up what it gets, in a state of its own."""
    x = parameter([1, 2])
    total = op.add(op.read_value(x, "memory", np.float32, [1, 2]), x)
    return ov.Model([op.result(total)], [op.assign(total, "memory")], [x], "stateful")


def growing() -> ov.Model:
    """As :func:`stateful`, of any number of rows; the state begins as the first ``x``."""
    x = parameter([-1, 2])
    total = op.add(op.read_value(x, "memory", np.float32, [-1, 2]), x)
    return ov.Model([op.result(total)], [op.assign(total, "memory")], [x], "growing")


def accumulator() -> ov.Model:
    """``x`` [rows,1] and ``state`` [2,rows,1] -> ``next``, the state with x added, and ``y``, the first half of it."""
    x, state = parameter([-1, 1]), parameter([2, -1, 1], name="state")
    total = op.add(state, op.unsqueeze(x, op.constant(0)))
    return model({"y": op.gather(total, op.constant(0), op.constant(0)), "next": total}, [x, state])


def save(network: ov.Model, folder: Path) -> Path:
    """Writes ``network`` into ``folder`` as a repository keeps a version."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.xml"
    ov.save_model(network, file, compress_to_fp16=False)
    return file


def source(file: Path, toml: str = "", name: str = "small") -> ModelSource:
    """``file`` as version 1 of a model with the settings in ``toml``."""
    return ModelSource(name, 1, FileSet(file, None, Bounds(file.parent)), parse(toml, f"{name}/model.toml"))


def engine(cache: Path | None = None) -> Engine:
    """An engine with two threads, and a blob cache in ``cache`` if given."""
    return Engine(2, BlobCache(cache or Path("unused"), 1 << 30 if cache else 0))


def tensor(values: Any, dtype: DType = DType.FP32) -> Tensor:
    """``values`` as a request carries them."""
    array = np.asarray(values, dtype.numpy)
    return Tensor(dtype, array.shape, array.tobytes())


def numbers(answer: Tensor) -> "np.ndarray[Any, Any]":
    """The elements of an answer, copied: the memory below is the slot's."""
    data = answer.data.copied() if isinstance(answer.data, Placed) else answer.data
    return np.frombuffer(bytes(data), answer.dtype.numpy).reshape(answer.shape)  # type: ignore[arg-type]
