"""Device strings, compile properties, and the properties in force after a compile."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferd.axes import DEVICE_CHOICES, QUANTITIES, Value
from inferd.config.model import ModelConfig
from inferd.engine.runtime import ov
from inferd.errors import DeviceAbsent

# Families that choose among the devices they list, so an absent one is no error.
_CHOOSING = ("AUTO", "MULTI")
_FLOATS = ("f64", "f32", "bf16", "f16")
# Layers that move or convert data: their type says nothing about the precision of the arithmetic.
_NOT_ARITHMETIC = ("Const", "Input", "Output", "Convert", "Reorder")


def family(device: str) -> str:
    """CPU, GPU, NPU, AUTO, HETERO, MULTI or BATCH."""
    return re.split(r"[:.]", device, maxsplit=1)[0]


def candidates(device: str) -> list[str]:
    """The devices that ``device`` lists after a colon, without batch sizes in brackets."""
    _, _, names = device.partition(":")
    return [re.sub(r"\(\d+\)$", "", name) for name in names.split(",") if name]


def resolve(requested: str, present: Sequence[str]) -> str:
    """``requested`` as this machine can run it, given the names in ``present``.

    AUTO and MULTI keep those of their candidates that are present, in order (OpenVINO itself raises on
    ``AUTO:GPU,CPU`` if the GPU library is missing). All others need every device they name. Raises
    DeviceAbsent.
    """
    kind, inner = family(requested), candidates(requested)
    if kind == "AUTO" and not inner:
        if not present:
            raise DeviceAbsent(requested, "a device", present)
        return requested
    if kind in ("HETERO", "MULTI", "BATCH") and not inner:
        # OpenVINO 2026.4 has no default for them and raises an obscure error.
        raise DeviceAbsent(requested, "a list of devices", present)
    needed = inner or [requested]
    found = [name for name in needed if _is_present(name, present)]
    if not found or (kind not in _CHOOSING and found != needed):
        absent = " or " if kind in _CHOOSING else ", "
        raise DeviceAbsent(requested, absent.join(name for name in needed if name not in found), present)
    return f"{kind}:{','.join(found)}" if kind in _CHOOSING else requested


def compile_properties(device: str, config: ModelConfig, cpu_threads: int) -> dict[str, Any]:
    """The properties for ``compile_model`` or ``import_model`` on a resolved ``device``.

    ``cpu_threads`` is the daemon's CPU budget, the upper limit for threads.
    """
    # All families take these (GPU and NPU by their documentation; the others were tested).
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": config.objective.goal.upper(),
        "EXECUTION_MODE_HINT": config.execution.mode.upper(),
    }
    if config.execution.precision != "auto":
        properties["INFERENCE_PRECISION_HINT"] = config.execution.precision
    kind, inner = family(device), candidates(device)
    if kind == "BATCH":
        # BATCH refuses DEVICE_PROPERTIES and passes everything else to the device it wraps.
        properties |= _own_properties(inner[0], config, cpu_threads)
    elif kind in ("AUTO", "HETERO", "MULTI"):
        # Plain AUTO may use the CPU, at least while it compiles for another device.
        own = {name: _own_properties(name, config, cpu_threads) for name in inner or ["CPU"]}
        if own := {name: settings for name, settings in own.items() if settings}:
            properties["DEVICE_PROPERTIES"] = own
    else:
        properties |= _own_properties(device, config, cpu_threads)
    return properties | config.properties


@dataclass(frozen=True, slots=True)
class Effective:
    """The settings a compiled model really runs with; "unknown", 0 or None if the device does not report them.

    ``choices`` are by axis, as compiled: threads inherited from a freed model keep that model's placement
    (OpenVINO fact 30).
    """

    precision: str
    execution_mode: str
    performance_hint: str
    streams: int
    threads: int
    infer_requests: int
    execution_devices: tuple[str, ...]
    choices: Mapping[str, Value]


def read_back(compiled: ov.CompiledModel) -> Effective:
    """The settings OpenVINO chose or clamped to. Never raises.

    Compound devices are asked about the first device they execute on.
    """
    # AUTO puts a device in brackets while it still compiles for another one.
    devices = tuple(str(name).strip("()") for name in _listed(_property(compiled, "EXECUTION_DEVICES")))
    own = _property(compiled, "DEVICE_PROPERTIES")
    first: dict[str, Any] = own.get(devices[0], {}) if isinstance(own, dict) and devices else {}

    def value(name: str) -> Any:
        # MULTI itself always reports THROUGHPUT; what it passed on counts.
        return first[name] if name in first else _property(compiled, name)

    return Effective(
        precision=_precision(compiled, value("INFERENCE_PRECISION_HINT")),
        execution_mode=_word(value("EXECUTION_MODE_HINT")),
        performance_hint=_word(value("PERFORMANCE_HINT")),
        streams=_count(value(QUANTITIES["streams"].property)),
        threads=_count(value(QUANTITIES["threads"].property)),
        infer_requests=_count(_property(compiled, "OPTIMAL_NUMBER_OF_INFER_REQUESTS")),
        execution_devices=devices,
        choices={name: axis.value_read(_plain(value(axis.property))) for name, axis in DEVICE_CHOICES.items()},
    )


def _is_present(name: str, present: Iterable[str]) -> bool:
    """Whether ``name`` is in ``present``, where GPU means any GPU and a lone GPU is also GPU.0.

    A longer index names a tile, which OpenVINO may not list; OpenVINO itself judges those.
    """
    for other in present:
        if name in (other, family(other)):
            return True
        indexed = other if "." in other else f"{other}.0"
        if name == indexed or name.startswith(f"{indexed}.") or indexed.startswith(f"{name}."):
            return True
    return False


def _own_properties(device: str, config: ModelConfig, cpu_threads: int) -> dict[str, Any]:
    """The properties that only ``device`` understands, by family. Only the CPU's were tested."""
    execution, own, kind = config.execution, dict[str, Any](), family(device)
    streams, threads = QUANTITIES["streams"], QUANTITIES["threads"]
    if kind in threads.families:
        own[threads.property] = min(execution.threads or cpu_threads, cpu_threads)
    for name, axis in DEVICE_CHOICES.items():
        if kind in axis.families and (word := getattr(execution, name)) != "auto":
            own[axis.property] = axis.written[axis.words[word]]
    if kind in streams.families and execution.streams:
        own[streams.property] = execution.streams
    return own


def _property(compiled: ov.CompiledModel, name: str) -> Any:
    try:
        return compiled.get_property(name)
    except RuntimeError:
        # Device families differ in their properties; HETERO has hardly any.
        return None


def _precision(compiled: ov.CompiledModel, hint: Any) -> str:
    if not isinstance(hint, ov.Type):
        return "unknown"
    if not hint.is_dynamic():
        return str(hint.get_type_name())
    # Under ACCURACY the hint reads "dynamic", the model's own precision. Only the compiled graph
    # tells which that is: the floating type that most of its layers compute in.
    try:
        layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    except RuntimeError:
        return "unknown"
    used = [
        layer["runtimePrecision"].astype(str)
        for layer in layers
        if {"runtimePrecision", "layerType"} <= set(layer) and layer["layerType"].astype(str) not in _NOT_ARITHMETIC
    ]
    floats = Counter(name for name in used if name in _FLOATS)
    return floats.most_common(1)[0][0] if floats else "unknown"


def _word(value: Any) -> str:
    """The name of an OpenVINO enum value, which some plugins return as text."""
    return "unknown" if value is None else str(getattr(value, "name", value)).lower()


def _plain(value: Any) -> bool | str:
    return value if isinstance(value, bool) else _word(value)


def _count(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set) else []
