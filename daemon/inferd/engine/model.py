"""From a model file to pools that can run it: read, shape, compile or import, warm up."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from inferd.config.model import ModelConfig
from inferd.engine import device as devices
from inferd.engine import preprocessing
from inferd.engine.cache import BlobCache, blob_key
from inferd.engine.pool import Pool
from inferd.engine.runtime import ov, version
from inferd.engine.slot import InferSlot, RunFailed, sentence
from inferd.errors import ConfigurationError, InferdError, LoadFailed, listed
from inferd.tensors import Dim, DType, Signature, Tensor, TensorSpec, elements

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
class ModelSource:
    """What to load: the version's main file, all files its content depends on, its settings."""

    name: str
    version: int
    path: Path
    files: tuple[Path, ...]
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class DevicePool:
    """A pool with what its device really does and the service time seen at warm-up (ns, 0 unknown)."""

    pool: Pool
    effective: devices.Effective
    service_time: float
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
            _refuse_state(model, source)
            _reshape(model, source)
            model = preprocessing.embed(model, source.config.preprocessing)
            return model, _signature(model, source.config.batching.max_size)
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
            size = source.config.execution.infer_requests or max(1, effective.infer_requests)
            pool = Pool(
                target, size, lambda on_done: InferSlot(compiled.create_infer_request(), signature, on_done), compiled
            )
        except RuntimeError as error:
            raise LoadFailed(source.name, source.version, f"on {target}: {sentence(error)}") from error
        except OSError as error:
            problem = f"a file of it can't be read: {error.strerror}"
            raise LoadFailed(source.name, source.version, problem) from error
        undo.callback(pool.close)
        return DevicePool(pool, effective, _warm_up(source, signature, pool), from_cache)

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
            "batching": repr(source.config.batching),
            "preprocessing": repr(sorted(source.config.preprocessing.items())),
        }


def _refuse_state(model: "ov.Model", source: ModelSource) -> None:
    """Stateful models keep their state in the infer request: a shared pool would mix clients' states."""
    if variables := model.get_variables():
        names = listed(v.info.variable_id for v in variables)
        raise LoadFailed(
            source.name,
            source.version,
            f"it keeps internal state ({names}), which a pool shared between clients would mix up; "
            "export it with its state as inputs and outputs",
        )


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
    if size := config.batching.max_size:
        for name, shape in shapes.items():
            if shape.rank.is_dynamic or shape.rank.get_length() == 0:
                raise ConfigurationError(
                    f"{source.name}/model.toml",
                    "batching.max_size",
                    f"input '{name}' has no first dimension to batch over",
                    "0",
                )
            shape[0] = ov.Dimension(1, size)
    model.reshape({ports[name]: shape for name, shape in shapes.items()})
    if config.batching.max_size > 1:
        for i, port in enumerate(model.outputs):
            shape = port.partial_shape
            if shape.rank.is_dynamic or shape.rank.get_length() == 0 or shape[0].is_static:
                raise ConfigurationError(
                    f"{source.name}/model.toml",
                    "batching.max_size",
                    f"output '{_port_name(port, f'output_{i}')}' of shape {shape} does not follow the batch",
                    "0",
                )


def _signature(model: "ov.Model", max_batch: int) -> Signature:
    if not model.outputs:
        # An empty .pdmodel is read as a model of nothing at all.
        raise RuntimeError("it has no outputs")
    return Signature(
        _specs(model.inputs, "input"),
        _specs(model.outputs, "output"),
        max_batch,
    )


def _specs(ports: Sequence[Any], role: str) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for place, port in enumerate(ports):
        spec = _spec(port, f"{role}_{place}")
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


def _warm_up(source: ModelSource, signature: Signature, pool: Pool) -> float:
    """Run made-up input through every slot; the last round's time seeds the scheduler.

    A model whose shapes are all fixed must run on it: it is broken otherwise. Made-up
    shapes may be ones a dynamic model can't take, which proves nothing about real ones.
    """
    config = source.config.warmup
    if unknown := set(config.shapes) - {s.name for s in signature.inputs}:
        names = listed(s.name for s in signature.inputs)
        raise ConfigurationError(f"{source.name}/model.toml", f"warmup.shapes.{min(unknown)}", "no such input", names)
    inputs = [_made_up(source, spec, config.shapes.get(spec.name)) for spec in signature.inputs]
    took = 0.0
    try:
        for _ in range(config.runs):
            took = pool.run_all(inputs)
    except RunFailed as error:
        fixed = all(s.static_shape is not None or s.name in config.shapes for s in signature.inputs)
        if fixed:
            raise LoadFailed(source.name, source.version, f"warm-up on {pool.device}: {error}") from error
        log.warning("warm-up skipped", model=source.name, device=pool.device, problem=str(error))
    return took


def _made_up(source: ModelSource, spec: TensorSpec, shape: Sequence[int] | None) -> Tensor:
    concrete = tuple(shape) if shape is not None else spec.smallest()
    if not spec.accepts(concrete):
        raise ConfigurationError(
            f"{source.name}/model.toml",
            f"warmup.shapes.{spec.name}",
            f"shape {list(concrete)} does not fit",
            spec.describe(),
        )
    count = elements(concrete)
    if spec.dtype is DType.BYTES:
        return Tensor(spec.dtype, concrete, [b""] * count)
    return Tensor(spec.dtype, concrete, bytes(count * spec.dtype.itemsize))
