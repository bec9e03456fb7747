"""The models that every server serves, as files that OpenVINO reads, and their inputs."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from tests import models
from tests.conftest import ROOT
from tests.system.wire import request

from inferd.engine.runtime import ov
from inferd.tensors import DType

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@dataclass(frozen=True, slots=True)
class Workload:
    """A model in ``file``, its one input and OpenVINO's output for it, row-major.

    ``request`` is the ModelInferRequest for it, serialised; ``body`` the bytes of the input alone, for servers that
    speak HTTP. ``pace`` is how many times longer than others it is measured.
    """

    name: str
    file: Path
    input_name: str
    output_name: str
    array: npt.NDArray[np.generic]
    answer: npt.NDArray[np.float32]
    request: bytes
    body: bytes
    pace: float = 1.0


def _noop() -> "ov.Model":
    return models.identity(DType.FP32, [1, 4])


def _magika() -> "ov.Model":
    return ov.Core().read_model(ROOT / "models" / "magika" / "1" / "model.onnx")


def _light(name: str) -> Callable[[], "ov.Model"]:
    return lambda: ov.Core().read_model(LIGHT / f"light_{name}.onnx")


SOURCES: dict[str, Callable[[], "ov.Model"]] = {
    "noop": _noop,
    "magika": _magika,
    "squeezenet": _light("squeezenet"),
    "resnet50": _light("resnet50"),
}
"""noop gives back what it gets, 16 bytes; magika takes 8 KB; squeezenet takes 600 KB and little time, resnet50 as much
and ten times as long."""
PACE = {"resnet50": 2.0}
"""How many times longer than others a model is measured if few of its responses fit the time."""


def make(names: list[str], repository: Path, settings: Callable[[str], str]) -> list[Workload]:
    """Write the models into ``repository`` in inferd's layout; ``settings`` has the model.toml of each.

    Shapes become static, one row: the comparison is of serving, not of dynamic batching.
    """
    return [_make(name, repository, settings(name)) for name in names]


def _make(name: str, repository: Path, settings: str) -> Workload:
    model = SOURCES[name]()
    model.reshape({port.any_name: _one_row(port.partial_shape) for port in model.inputs})
    shutil.rmtree(repository / name, ignore_errors=True)
    models.save(model, repository, name, settings=settings)
    port = model.inputs[0]
    chance = np.random.default_rng(7)
    dtype = port.element_type.to_dtype()
    array = chance.integers(0, 256, tuple(port.shape)) if dtype == np.int32 else chance.random(tuple(port.shape))
    array = array.astype(dtype)
    compiled = ov.Core().compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    answer = compiled([array])[0].copy()
    message = request(name, {port.any_name: array})
    return Workload(
        name,
        repository / name / "1" / "model.xml",
        port.any_name,
        model.outputs[0].any_name,
        array,
        answer,
        message.SerializeToString(),
        array.tobytes(),
        PACE.get(name, 1.0),
    )


def _one_row(shape: "ov.PartialShape") -> list[int]:
    return [dim.get_length() if dim.is_static else 1 for dim in shape]
