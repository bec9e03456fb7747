"""Models on which some inputs fail while they run or could never run, one for each kind of failure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inferd.engine.runtime import ov
from tests.engine.models import model, op, parameter

Inputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """``good`` inputs, sent in turns, and ``bad`` ones. ``by_shape`` where the shapes of the bad ones already tell."""

    network: "ov.Model"
    good: Sequence[Inputs]
    bad: Sequence[Inputs]
    by_shape: bool

    def answers(self) -> list[npt.NDArray[Any]]:
        """The first output for each of ``good``, each from a compiled model that has seen nothing else."""
        core = ov.Core()
        exact = {"EXECUTION_MODE_HINT": "ACCURACY"}
        return [np.array(core.compile_model(self.network, "CPU", exact)(list(x.values()))[0]) for x in self.good]


def _random(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _whole(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def small_images() -> Kind:
    """A convolution, and a pooling that needs two rows and columns."""
    x = parameter([-1, 3, -1, -1])
    convolved = op.convolution(x, op.constant(_random(4, 3, 3, 3)), [1, 1], [1, 1], [1, 1], [1, 1])
    pooled = op.max_pool(convolved, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2])
    y = op.reduce_mean(pooled.output(0), op.constant(_whole(2, 3)), False)
    return Kind(
        model({"y": y}, [x]),
        [{"x": _random(1, 3, 32, 32)}, {"x": _random(1, 3, 32, 32, seed=1)}],
        [{"x": _random(1, 3, 1, 1)}, {"x": _random(1, 3, 1, 7)}],
        by_shape=True,
    )


def short_signals() -> Kind:
    """A window of four samples; good signals are of many lengths."""
    x = parameter([1, 2, -1])
    y = op.add(op.avg_pool(x, [4], [0], [0], [4], True), op.constant(np.float32(1)))
    return Kind(
        model({"y": y}, [x]),
        [{"x": _random(1, 2, n, seed=n)} for n in (4, 8, 31, 64, 100)],
        [{"x": _random(1, 2, n)} for n in (1, 2, 3)],
        by_shape=True,
    )


def unlike_matrices() -> Kind:
    x, z = parameter([-1, -1]), parameter([-1, -1], name="z")
    y = op.relu(op.matmul(x, z, False, False))
    good = [{"x": _random(2, 4, seed=n), "z": _random(4, 5)} for n in range(2)]
    return Kind(model({"y": y}, [x, z]), good, [{"x": _random(2, 4), "z": _random(5, 4)}], by_shape=True)


def unlike_parts() -> Kind:
    x, z = parameter([-1, -1]), parameter([-1, -1], name="z")
    y = op.relu(op.concat([x, op.add(z, op.constant(np.float32(1)))], 0))
    good = [{"x": _random(n, 4), "z": _random(3, 4)} for n in (2, 3)]
    return Kind(model({"y": y}, [x, z]), good, [{"x": _random(2, 4), "z": _random(3, 5)}], by_shape=True)


def uneven_rows() -> Kind:
    """A reshape to rows of four."""
    x = parameter([-1])
    y = op.relu(op.reshape(op.multiply(x, op.constant(np.float32(2))), op.constant(_whole(-1, 4)), False))
    return Kind(model({"y": y}, [x]), [{"x": _random(8)}], [{"x": _random(7)}], by_shape=True)


def wrong_width() -> Kind:
    """A recurrent layer of three inputs, of which only the CPU finds out that there are five."""
    hidden, x = 4, parameter([1, -1, -1])
    zeros = op.constant(np.zeros((1, 1, hidden), np.float32))
    length = op.gather(op.shape_of(x), op.constant(_whole(1)), op.constant(np.int64(0)))
    weights = [op.constant(_random(1, 4 * hidden, n)) for n in (3, hidden)]
    bias = op.constant(_random(1, 4 * hidden))
    y = op.lstm_sequence(x, zeros, zeros, length, *weights, bias, hidden, "forward").output(0)
    good = [{"x": _random(1, n, 3, seed=n)} for n in (4, 6)]
    return Kind(model({"y": y}, [x]), good, [{"x": _random(1, 4, 5, seed=n)} for n in range(3)], by_shape=False)


def picked_rows(rows: int = -1) -> Kind:
    """The rows whose sum is positive, which have to be one or three; good and bad inputs are of the same shape."""
    x = parameter([rows, 4])
    positive = op.greater(op.reduce_sum(x, op.constant(_whole(1)), False), op.constant(np.float32(0)))
    places = op.squeeze(op.non_zero(positive, "i64"), op.constant(_whole(0)))
    y = op.add(op.gather(x, places, op.constant(np.int64(0))), op.constant(_random(3, 4)))
    signs = {
        n: {"x": np.abs(_random(6, 4, seed=n)) * np.where(np.arange(6) < n, 1, -1)[:, None].astype(np.float32)}
        for n in range(1, 6)
    }
    return Kind(model({"y": y}, [x]), [signs[3]], [signs[2], signs[4], signs[5]], by_shape=False)


def chosen_shape() -> Kind:
    """A reshape that the client chooses: one that failed was answered with another's when it came again."""
    x, to = parameter([-1]), parameter([2], ov.Type.i64, "to")
    y = op.relu(op.reshape(op.add(x, op.constant(np.float32(1))), to, False))
    return Kind(
        model({"y": y}, [x, to]),
        [{"x": _random(8, seed=1), "to": _whole(2, 4)}, {"x": _random(12, seed=2), "to": _whole(3, -1)}],
        [{"x": _random(8), "to": _whole(3, 2)}, {"x": _random(8), "to": _whole(5, 5)}],
        by_shape=False,
    )


KINDS: dict[str, Callable[[], Kind]] = {
    "small_images": small_images,
    "short_signals": short_signals,
    "unlike_matrices": unlike_matrices,
    "unlike_parts": unlike_parts,
    "uneven_rows": uneven_rows,
    "wrong_width": wrong_width,
    "picked_rows": picked_rows,
    "picked_fixed_rows": lambda: picked_rows(6),
    "chosen_shape": chosen_shape,
}


def long_or_short(layers: int = 300) -> "ov.Model":
    """``x`` FP32 [rows,256] -> ``y``, by ``layers`` products: some rows take a moment, thousands take seconds."""
    x = parameter([-1, 256])
    y = x
    for _ in range(layers):
        y = op.matmul(y, op.constant(np.eye(256, dtype=np.float32)), False, False)
    return model({"y": y}, [x])
