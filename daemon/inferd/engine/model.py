"""From a model file to pools that can run it: read, shape, compile or import, warm up."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import structlog

from inferd.config.model import ModelConfig
from inferd.engine import device as devices
from inferd.engine import preprocessing, state
from inferd.engine.cache import BlobCache, blob_key
from inferd.engine.pool import Pool
from inferd.engine.runtime import ov, version
from inferd.engine.slot import InferSlot, sentence
from inferd.engine.source import ModelSource
from inferd.engine.warmup import warm_up
from inferd.errors import ConfigurationError, InferdError, LoadFailed, listed
from inferd.tensors import Dim, DType, Signature, TensorSpec

log = structlog.get_logger("inferd.engine")

_TYPES = {
    "boolean": DType.BOOL,
    "u8": DType.UINT8,
    "u16": DType.UINT16,
    "u32": DType.UINT32,
    "u64": DType.UINT64,
    "i8": DType.INT8,
    "i16": DType.INT16,
    "i32": DType.INT32,
    "i64": DType.INT64,
    "f16": DType.FP16,
    "bf16": DType.BF16,
    "f32": DType.FP32,
    "f64": DType.FP64,
    "string": DType.BYTES,
}


@dataclass(frozen=True, slots=True)
class DevicePool:
    """A pool with what its device really does, and the service times seen at warm-up as (rows of the
    run, nanoseconds). ``width`` is the part of the device that one run takes up."""

    pool: Pool
    effective: devices.Effective
    times: tuple[tuple[int, float], ...]
    width: float
    from_cache: bool


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version ready to run: its signature and one pool a device."""

    signature: Signature
    pools: tuple[DevicePool, ...]

    def close(self) -> None:
        """End what is in flight on every pool."""
        for entry in self.pools:
            entry.pool.close()


class Engine:
    """Loads models. Safe to call from several threads; each call blocks until the model is warm."""

    def __init__(self, cpu_threads: int, cache: BlobCache) -> None:
        self._core = ov.Core()
        self._cpu_threads = cpu_threads
        self._cache = cache

    @property
    def available_devices(self) -> tuple[str, ...]:
        """Devices present on this machine, as OpenVINO names them."""
        return tuple(self._core.available_devices)

    def inspect(self, source: ModelSource) -> Signature:
        """The signature ``source`` would be served with; compiles nothing. Raises as :meth:`load`."""
        for requested in source.config.devices:
            devices.resolve(requested, self.available_devices)
        return self._prepare(source)[1]

    def load(self, source: ModelSource) -> LoadedModel:
        """``source`` on every device it asks for, warmed up.

        Raises ConfigurationError, DeviceAbsent or LoadFailed with one sentence; then
        nothing of it is left.
        """
        targets = [devices.resolve(requested, self.available_devices) for requested in source.config.devices]
        model, signature = self._prepare(source)
        with ExitStack() as undo:
            pools = tuple(self._pool(source, model, signature, target, undo) for target in targets)
            undo.pop_all()
        return LoadedModel(signature, pools)

    def _prepare(self, source: ModelSource) -> tuple["ov.Model", Signature]:
        try:
            model = self._core.read_model(source.path)
            _reshape(model, source)
            model = preprocessing.embed(model, source.config.preprocessing)
            return model, state.link(source, _signature(model, source.config), stateful=_keeps_state(model, source))
        except InferdError:
            raise
        except RuntimeError as error:
            # Clients get to read this, and OpenVINO names the file with its whole path.
            problem = sentence(error).replace(f"{source.path.parent}/", "")
            raise LoadFailed(source.name, source.version, problem) from error

    def _pool(
        self, source: ModelSource, model: "ov.Model", signature: Signature, target: str, undo: ExitStack
    ) -> DevicePool:
        properties = devices.compile_properties(target, source.config, self._cpu_threads)
        try:
            compiled, from_cache = self._compile(source, model, target, properties)
            effective = devices.read_back(compiled)
            width = source.config.execution.infer_requests or max(1, effective.infer_requests)
            pool = Pool(
                target,
                state.most_sequences(source.config, signature) if signature.stateful else width,
                lambda on_done: InferSlot(compiled.create_infer_request(), signature, on_done),
                compiled,
                width,
            )
        except RuntimeError as error:
            raise LoadFailed(source.name, source.version, f"on {target}: {sentence(error)}") from error
        except OSError as error:
            problem = f"a file of it can't be read: {error.strerror}"
            raise LoadFailed(source.name, source.version, problem) from error
        undo.callback(pool.close)
        part = min(1.0, effective.threads / self._cpu_threads) if effective.threads else 1.0
        return DevicePool(pool, effective, warm_up(source, signature, pool), part / width, from_cache)

    def _compile(
        self, source: ModelSource, model: "ov.Model", target: str, properties: Mapping[str, Any]
    ) -> tuple["ov.CompiledModel", bool]:
        """Compile, or import the blob of an earlier compile. True when it came from the cache."""
        if not self._caches(target):
            return self._core.compile_model(model, target, dict(properties)), False
        key = blob_key(source.files, self._blob_facts(source, target, properties))
        with self._cache.lock(key):
            if (blob := self._cache.load(key)) is not None:
                try:
                    return self._core.import_model(blob, target, dict(properties)), True
                except RuntimeError as error:
                    log.warning("cached blob refused", model=source.name, problem=sentence(error))
            compiled = self._core.compile_model(model, target, dict(properties))
            self._cache.store(key, compiled.export_model().getbuffer())
            return compiled, False

    def _caches(self, target: str) -> bool:
        # Compound devices (AUTO, HETERO, ...) compile for several: only a plain device's blob is one thing.
        if not self._cache.enabled or devices.family(target) not in ("CPU", "GPU", "NPU"):
            return False
        return "EXPORT_IMPORT" in self._core.get_property(target, "OPTIMIZATION_CAPABILITIES")

    def _blob_facts(self, source: ModelSource, target: str, properties: Mapping[str, Any]) -> dict[str, str]:
        # One blob serves every streams, threads and hint setting (OpenVINO fact 10).
        tunable = {"NUM_STREAMS", "INFERENCE_NUM_THREADS", "PERFORMANCE_HINT"}
        facts = {f"property {k}": str(v) for k, v in properties.items() if k not in tunable}
        return facts | {
            "openvino": version(),
            "device": f"{target} {self._core.get_property(target, 'FULL_DEVICE_NAME')}",
            "shapes": repr(sorted(source.config.shapes.items())),
            "batching": f"{source.config.batching.max_size} {sorted(state.batch_axes(source.config).items())}",
            "preprocessing": repr(sorted(source.config.preprocessing.items())),
        }


def _keeps_state(model: "ov.Model", source: ModelSource) -> bool:
    """Whether the model keeps a state of its own, in the infer request: each sequence then needs one to itself."""
    variables = model.get_variables()
    if variables and len(source.config.devices) > 1:
        names = listed(v.info.variable_id for v in variables)
        raise ConfigurationError(
            f"{source.name}/model.toml", "devices", f"the model keeps state ({names}), which stays on one device", "one"
        )
    return bool(variables)


def _reshape(model: "ov.Model", source: ModelSource) -> None:
    """Apply [shapes] and the batch bound to the model's inputs."""
    config = source.config
    if not config.shapes and not config.batching.max_size:
        return
    ports = {_port_name(port, f"input_{i}"): port for i, port in enumerate(model.inputs)}
    by_alias = {alias: name for name, port in ports.items() for alias in (*port.names, name)}
    shapes = {name: port.partial_shape for name, port in ports.items()}
    for given, dims in config.shapes.items():
        if given not in by_alias:
            raise ConfigurationError(f"{source.name}/model.toml", f"shapes.{given}", "no such input", listed(ports))
        shapes[by_alias[given]] = ov.PartialShape([_dimension(d) for d in dims])
    axes = state.batch_axes(config)
    if size := config.batching.max_size:
        for name, shape in shapes.items():
            axis = axes.get(name, 0)
            if shape.rank.is_dynamic or shape.rank.get_length() <= axis:
                raise ConfigurationError(
                    f"{source.name}/model.toml",
                    "batching.max_size",
                    f"input '{name}' has no dimension {axis + 1} to batch over",
                    "0",
                )
            shape[axis] = ov.Dimension(1, size)
    model.reshape({ports[name]: shape for name, shape in shapes.items()})
    if config.batching.max_size > 1:
        for i, port in enumerate(model.outputs):
            shape, axis = port.partial_shape, axes.get(_port_name(port, f"output_{i}"), 0)
            if shape.rank.is_dynamic or shape.rank.get_length() <= axis or shape[axis].is_static:
                raise ConfigurationError(
                    f"{source.name}/model.toml",
                    "batching.max_size",
                    f"output '{_port_name(port, f'output_{i}')}' of shape {shape} does not follow the batch",
                    "0",
                )


def _signature(model: "ov.Model", config: ModelConfig) -> Signature:
    if not model.outputs:
        # An empty .pdmodel is read as a model of nothing at all.
        raise RuntimeError("it has no outputs")
    axes = state.batch_axes(config)
    return Signature(
        _specs(model.inputs, "input", axes), _specs(model.outputs, "output", axes), config.batching.max_size
    )


def _specs(ports: Sequence[Any], role: str, axes: Mapping[str, int]) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for place, port in enumerate(ports):
        spec = _spec(port, f"{role}_{place}")
        spec = replace(spec, batch_axis=axes.get(spec.name, 0))
        if spec.name in {s.name for s in specs}:
            # Two results of one tensor share its name, and a name must ask for one thing.
            spec = replace(spec, name=f"{role}_{place}", aliases=frozenset())
        specs.append(spec)
    return tuple(specs)


def _spec(port: Any, fallback: str) -> TensorSpec:
    name = _port_name(port, fallback)
    type_name = port.element_type.get_type_name()
    if type_name not in _TYPES:
        raise RuntimeError(f"'{name}' has element type {type_name}, which the protocol can't carry")
    shape = port.partial_shape
    dims = None if shape.rank.is_dynamic else tuple(_dim(d) for d in shape)
    return TensorSpec(name, _TYPES[type_name], dims, frozenset(port.names) - {name})


def _port_name(port: Any, fallback: str) -> str:
    """The port's tensor name; IR made by tools may leave it out, and then the node's name or its place serves."""
    return min(port.names) if len(port.names) == 1 else (port.any_name if port.names else fallback)


def _dim(dimension: "ov.Dimension") -> Dim:
    hi = dimension.get_max_length()
    return Dim(dimension.get_min_length(), None if hi < 0 else hi)


def _dimension(dim: Dim) -> "ov.Dimension":
    return ov.Dimension(dim.lo, -1 if dim.hi is None else dim.hi)
