"""From a model file to pools that can run it: read, shape, compile or import, warm up."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import structlog

from inferd.axes import DEVICE_CHOICES
from inferd.config.daemon import Settings
from inferd.config.model import ModelConfig
from inferd.engine import (
    class_labels,
    empty_inputs,
    fused_reductions,
    number_ranges,
    onnx_constants,
    onnx_reductions,
    preprocessing,
    state,
    unwritten_outputs,
)
from inferd.engine import device as devices
from inferd.engine.cache import BlobCache
from inferd.engine.compiler import Compiler, CompileResult
from inferd.engine.cpu_budget import cpu_threads
from inferd.engine.device_status import DeviceStatus
from inferd.engine.empty_inputs import EmptyInputs
from inferd.engine.inline_slot import MOST_NS, InlineSlot, left_open, may_run_inline
from inferd.engine.pool import Pool, Rebuilding, SlotRebuilder
from inferd.engine.preflight import Preflight, PreflightLimits
from inferd.engine.rebuild import rebuilder, taints_on_failure
from inferd.engine.runtime import give_memory_back, keep_small_blocks, ov
from inferd.engine.shape_check import ShapeCheck, shape_check
from inferd.engine.slot import InferSlot, Slot, SlotFactory, error_summary
from inferd.engine.source import ModelSource
from inferd.engine.sync_slot import SyncSlot
from inferd.engine.topology import Tunables, cpu_topology, tunables
from inferd.engine.warmup import warm_up
from inferd.errors import ConfigurationError, InferdError, LoadFailed, listed
from inferd.tensors import Dim, DType, Signature, TensorSpec

log = structlog.get_logger("inferd.engine")

Hint = Literal["latency", "throughput"]

_MakeSlot = Callable[["ov.InferRequest", Signature, Callable[[], None]], Slot]
_SLOTS: dict[str, _MakeSlot] = {"auto": InferSlot, "async": InferSlot, "sync": SyncSlot, "inline": InlineSlot}
# A run this many times too slow with hand-overs is too slow without them, so inline is not tried.
_INLINE_TRIED = 20
_LOOKS = 5

# OpenVINO's message about external data outside of the ONNX file's folder (after following links), and ours.
_OUTSIDE = re.compile(r"Path '(.*?)' resolves to .*")
_NOT_READ = r"external data '\1' is outside the model's folder, where OpenVINO can't read it"

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
class LoadedPool:
    """A pool with its device's effective settings, and the service times from warm-up as (rows of the run,
    nanoseconds). ``width`` is the share of the device that one run takes; ``timings`` is the time spent on making
    the pool. ``may_be_inline`` if model and device allow inline runs, whether or not it runs inline."""

    pool: Pool
    effective: devices.Effective
    times: tuple[tuple[int, float], ...]
    width: float
    from_cache: bool
    timings: "LoadTimings"
    may_be_inline: bool = False


@dataclass(frozen=True, slots=True)
class LoadTimings:
    """Seconds spent compiling (or importing from the cache), on warm-up, and on the first run of the warm-up."""

    compiling: float
    warm_up: float
    first_run: float


class _Prepared(NamedTuple):
    """The model as repaired for compiling, the signature and shape check from before, and the repaired operations."""

    model: "ov.Model"
    signature: Signature
    shapes: ShapeCheck | None
    written: unwritten_outputs.Written


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version ready to run: its signature, one pool per device, the seconds that loading took, and a check for
    shapes that it can't process (None if it takes every shape).

    ``empty_inputs`` judges empty inputs; None if the model takes none. ``class_labels`` name the values of its outputs,
    by their places."""

    signature: Signature
    pools: tuple[LoadedPool, ...]
    seconds: float
    shapes: ShapeCheck | None = None
    empty_inputs: EmptyInputs | None = None
    class_labels: tuple[str, ...] = ()

    @property
    def freed(self) -> bool:
        """Whether all its memory is free."""
        return all(entry.pool.freed for entry in self.pools)

    def close(self) -> None:
        """End the runs in flight on every pool, and free it. A run that does not end keeps its pool until it does."""
        for entry in self.pools:
            entry.pool.close()
        give_memory_back()


class Engine:
    """Loads models. Safe to call from several threads; each call blocks until the model is warm."""

    def __init__(
        self, cpu_threads: int, cache: BlobCache, preflight: Preflight | None = None, *, maps: bool = False
    ) -> None:
        """With ``preflight``, a child process tries each model first. With ``maps``, compiled models use weights right
        from their files, which saves memory. Only for processes without clients: writing to a mapped file changes
        results, and truncating it kills the process (OpenVINO fact 45)."""
        keep_small_blocks()
        self._core = ov.Core()
        self._cpu_threads = cpu_threads
        self._preflight = preflight
        self._maps = maps
        self._compiler = Compiler(self._core, cache, maps=maps)

    @classmethod
    def of(cls, settings: Settings) -> "Engine":
        """The engine that ``settings`` configure."""
        cache = BlobCache.of(settings)
        preflight = Preflight(cache, PreflightLimits.of(settings)) if settings.preflight != "off" else None
        return cls(cpu_threads(settings), cache, preflight)

    @property
    def available_devices(self) -> tuple[str, ...]:
        """Devices present on this machine, as OpenVINO names them."""
        return tuple(self._core.available_devices)

    @property
    def device_status(self) -> DeviceStatus:
        """Which devices OpenVINO finds now, and their memory."""
        return DeviceStatus(self._core)

    @property
    def cache_lookups(self) -> Mapping[str, int]:
        """Lookups in the cache of compiled models so far, by result: hit, miss or refused."""
        return self._compiler.lookups

    def inspect(self, source: ModelSource) -> Signature:
        """The signature of ``source``; compiles nothing. Raises like :meth:`load`."""
        self._targets(source)
        return self._prepare(source)[1]

    def try_out(self, source: ModelSource) -> Signature:
        """The signature of ``source``, after loading and running it, in a child process if preflight is on. Nothing
        stays loaded. Raises like :meth:`load`."""
        if self._preflight is None:
            loaded = self.load(source)
            loaded.close()
            return loaded.signature
        targets, source = self._targets(source), source.settled()
        self._try_first(self._preflight, source, targets)
        return self._prepare(source)[1]

    def load(self, source: ModelSource) -> LoadedModel:
        """``source`` on every device it asks for, warmed up.

        Loads the content that ``source`` was settled with; settles it first if necessary. Raises ConfigurationError,
        DeviceAbsent or LoadFailed with one sentence, or ContentChanged if the files have changed; then nothing of it
        stays loaded.
        """
        begun = time.monotonic()
        targets = self._targets(source)
        source = source.settled()
        try:
            return self._load(source, targets, begun)
        except InferdError:
            # An error from a mix of old and new content is meaningless: report the change instead.
            source.check()
            raise

    def _load(self, source: ModelSource, targets: Sequence[str], begun: float) -> LoadedModel:
        if self._preflight is not None:
            self._try_first(self._preflight, source, targets)
        # An imported model uses the weights in its blob.
        maps = self._maps or all(self._compiler.caches(target) for target in targets)
        model, signature, shapes, written = self._prepare(source, maps=maps)
        labels = class_labels.read(source)
        source.check()
        with ExitStack() as undo:
            pools = tuple(self._pool(source, model, signature, target, shapes, undo) for target in targets)
            undo.pop_all()
        empty = empty_inputs.of(model, written, signature)
        return LoadedModel(signature, pools, time.monotonic() - begun, shapes, empty, labels)

    def hinted(self, source: ModelSource, device: str, hint: Hint) -> devices.Effective:
        """The streams, threads and infer requests that ``hint`` chooses for ``source`` on ``device``.

        All other settings are those of ``source``, and threads are within the CPU budget. Compiles if the
        cache has no blob, and frees the result. Raises like :meth:`load`.
        """
        target = devices.resolve(device, self.available_devices)
        left_open = replace(source.settled(), config=_with_hint(hint, source.config))
        model, *_ = self._prepare(left_open)
        with _explained(source, target):
            return devices.read_back(self._compile(left_open, model, target).model)

    def threads_for(self, source: ModelSource) -> int:
        """How many CPU threads ``source`` may have: its part of the budget if it was given one, else all of it."""
        return min(source.cpu_threads or self._cpu_threads, self._cpu_threads)

    def tunable(self, device: str, cpu_threads: int = 0) -> Tunables:
        """What can be tuned on the resolved ``device`` within ``cpu_threads`` (0: the whole budget). BATCH has the axes
        of the wrapped device; other compound devices have none."""
        plain = devices.candidates(device)[0] if devices.family(device) == "BATCH" else device
        threads = min(cpu_threads or self._cpu_threads, self._cpu_threads)
        return tunables(devices.family(plain), self._stream_range(plain), threads, cpu_topology())

    def device_name(self, device: str) -> str:
        """The name of the resolved ``device``, such as a CPU's model; for a compound device, the devices it may use."""
        return self._query(device, lambda _: "FULL_DEVICE_NAME")

    def driver(self, device: str) -> str:
        """The driver version of the resolved ``device``, "" if it has none or does not report it."""
        return self._query(device, lambda name: f"{devices.family(name)}_DRIVER_VERSION")

    def close(self) -> None:
        """End the preflight children; these loads and all later ones fail."""
        if self._preflight is not None:
            self._preflight.close()

    def _try_first(self, preflight: Preflight, source: ModelSource, targets: Sequence[str]) -> None:
        """Have a child process load ``source``, unless the same content and settings have passed already."""
        preflight.check_open(source)
        keys = []
        for target in targets:
            with _explained(source, target):
                keys.append(self._compiler.key(source, target, self._properties(source, target)))
        preflight.check(source, keys)

    def _targets(self, source: ModelSource) -> list[str]:
        return [devices.resolve(requested, self.available_devices) for requested in source.config.devices]

    def _stream_range(self, device: str) -> tuple[int, int] | None:
        try:
            low, high = self._core.get_property(device, "RANGE_FOR_STREAMS")
        except RuntimeError:
            return None
        return int(low), int(high)

    def _query(self, device: str, property_of: Callable[[str], str]) -> str:
        """The property's values on the devices behind ``device``, without devices that don't know it."""
        plain = [device] if devices.family(device) in ("CPU", "GPU", "NPU") else devices.candidates(device)
        values: list[str] = []
        for name in plain or self.available_devices:
            with suppress(RuntimeError):
                values.append(str(self._core.get_property(name, property_of(name))))
        return ", ".join(values)

    def _prepare(self, source: ModelSource, *, maps: bool = True) -> _Prepared:
        try:
            model = self._core.read_model(source.path, config={"ENABLE_MMAP": maps})
            if source.path.suffix == ".onnx":
                if problem := onnx_reductions.misread(model, source.path):
                    raise LoadFailed(source.name, source.version, problem)
                onnx_constants.restore(model, source.path)
            _reshape(model, source)
            model = preprocessing.embed(model, source.config.preprocessing)
            refused = source.config.numbers.out_of_range == "refuse"
            signature = number_ranges.with_number_ranges(
                _signature(model, source.config), model, self._targets(source), refused=refused
            )
            signature = state.link(source, signature, stateful=_keeps_state(model, source))
            # Both checks need the model as it was read.
            prepared = _Prepared(model, signature, shape_check(model, signature), unwritten_outputs.repair(model))
            fused_reductions.repair(model)
            return prepared
        except InferdError:
            raise
        except unwritten_outputs.Unrepairable as refused:
            raise LoadFailed(source.name, source.version, str(refused)) from refused
        except RuntimeError as error:
            problem = _OUTSIDE.sub(_NOT_READ, error_summary(error, source.path))
            raise LoadFailed(source.name, source.version, problem) from error

    def _pool(
        self,
        source: ModelSource,
        model: "ov.Model",
        signature: Signature,
        target: str,
        shapes: ShapeCheck | None,
        undo: ExitStack,
    ) -> LoadedPool:
        """``source`` on ``target``: inline if settings and model allow that and it is fast enough."""
        # Runs with one thread are handed over (OpenVINO fact 38).
        may = self.threads_for(source) > 1 and may_run_inline(target, model, signature)
        open_ = may and left_open(source.config)
        computed_here = replace(source, config=_inline(source.config))
        if source.config.execution.path == "inline" or (open_ and source.inline):
            return replace(self._made(computed_here, model, signature, target, shapes, undo), may_be_inline=may)
        made = replace(self._made(source, model, signature, target, shapes, undo), may_be_inline=may)
        if not open_ or source.inline is False:
            return made
        if not made.times or min(ns for _, ns in made.times) > _INLINE_TRIED * MOST_NS:
            return made
        inline = self._made(computed_here, model, signature, target, shapes, undo)
        # The fastest of several: other models may be loading at the same time.
        quick = min(warm_up(source, signature, inline.pool).times[0][1] for _ in range(_LOOKS)) <= MOST_NS
        (made if quick else inline).pool.close()
        if not quick:
            return made
        # The second compile found in the cache what the first one had stored.
        timings = (made.timings, inline.timings)
        both = LoadTimings(sum(t.compiling for t in timings), sum(t.warm_up for t in timings), made.timings.first_run)
        return replace(inline, from_cache=made.from_cache, timings=both, may_be_inline=True)

    def _made(
        self,
        source: ModelSource,
        model: "ov.Model",
        signature: Signature,
        target: str,
        shapes: ShapeCheck | None,
        undo: ExitStack,
    ) -> LoadedPool:
        begun = time.monotonic()
        with _explained(source, target):
            made = self._compile(source, model, target)
            compiled = made.model
            compiling = time.monotonic() - begun
            effective = devices.read_back(compiled)
            path = source.config.execution.path
            if path in ("sync", "inline") and (effective.streams, effective.threads) == (1, 1):
                why = "with one stream and one thread, a failed run would go unnoticed"
                log.warning("execution path changed to async", model=source.name, path=path, problem=why)
                path = "async"  # OpenVINO fact 38
            taints = taints_on_failure(model, target)
            if path == "sync" and taints:
                why = "its shapes are not fixed, so it would be unknown which run failed first"
                log.warning("execution path changed to async", model=source.name, path=path, problem=why)
                path = "async"  # OpenVINO fact 39
            # The calling thread computes one run at a time, so one infer request is enough.
            asked = 1 if path == "inline" else source.config.execution.infer_requests
            width = asked or max(1, effective.infer_requests)

            def on_slots(of: "ov.CompiledModel") -> SlotFactory:
                return lambda on_done: _SLOTS[path](of.create_infer_request(), signature, on_done)

            pool = Pool(
                target,
                state.most_sequences(source.config, signature) if signature.stateful else width,
                on_slots(compiled),
                model=compiled,
                width=width,
                inline=path == "inline",
                rebuild=Rebuilding(self._slot_rebuilder(source, model, target, made, on_slots), int(compiling * 1e9))
                if taints
                else None,
            )
        undo.callback(pool.close)
        part = min(1.0, effective.threads / self._cpu_threads) if effective.threads else 1.0
        begun = time.monotonic()
        warm = warm_up(source, signature, pool, shapes)
        if pool.tainted:
            with _explained(source, target):
                pool.rebuild_now()
        timings = LoadTimings(compiling, time.monotonic() - begun, warm.first / 1e9)
        return LoadedPool(pool, effective, warm.times, part / width, made.from_cache, timings)

    def _slot_rebuilder(
        self,
        source: ModelSource,
        model: "ov.Model",
        target: str,
        compiled: CompileResult,
        on_slots: "Callable[[ov.CompiledModel], SlotFactory]",
    ) -> SlotRebuilder:
        take = rebuilder(
            self._core, model, target, self._properties(source, target), compiled.blob, exports=compiled.exports
        )

        def rebuild(old: "ov.CompiledModel") -> Callable[[], tuple[SlotFactory, object]]:
            again = take(old)

            def on_another() -> tuple[SlotFactory, object]:
                another = again()
                return on_slots(another), another

            return on_another

        return rebuild

    def _compile(self, source: ModelSource, model: "ov.Model", target: str) -> CompileResult:
        return self._compiler.compile(source, model, target, self._properties(source, target))

    def _properties(self, source: ModelSource, target: str) -> dict[str, Any]:
        return devices.compile_properties(target, source.config, self.threads_for(source))


@contextmanager
def _explained(source: ModelSource, target: str) -> Iterator[None]:
    """Turns errors of OpenVINO into LoadFailed."""
    try:
        yield
    except RuntimeError as error:
        raise LoadFailed(source.name, source.version, f"on {target}: {error_summary(error, source.path)}") from error


def _with_hint(hint: Hint, config: ModelConfig) -> ModelConfig:
    """``config`` with the numbers that ``hint`` chooses left to it."""
    return config.model_copy(
        update={
            "objective": config.objective.model_copy(update={"goal": hint}),
            "execution": config.execution.model_copy(update={"streams": 0, "threads": 0}),
        }
    )


def _inline(config: ModelConfig) -> ModelConfig:
    """``config`` for inline runs: one stream, on which OpenVINO computes on the calling thread; but not one thread, as
    failures would be lost (OpenVINO fact 38)."""
    execution = config.execution
    update = {"path": "inline", "streams": 1, "threads": execution.threads or 2}
    update |= {name: axis.inline_word for name, axis in DEVICE_CHOICES.items() if getattr(execution, name) == "auto"}
    return config.model_copy(update={"execution": execution.model_copy(update=update)})


def _keeps_state(model: "ov.Model", source: ModelSource) -> bool:
    """Whether the model keeps state in the infer request: each sequence then needs its own."""
    variables = model.get_variables()
    if variables and len(source.config.devices) > 1:
        names = listed(v.info.variable_id for v in variables)
        raise ConfigurationError(
            f"{source.name}/model.toml",
            "devices",
            f"the model keeps state ({names}), which stays on one device",
            allowed="one",
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
            raise ConfigurationError(
                f"{source.name}/model.toml", f"shapes.{given}", "no such input", allowed=listed(ports)
            )
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
                    allowed="0",
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
                    allowed="0",
                )


def _signature(model: "ov.Model", config: ModelConfig) -> Signature:
    if not model.outputs:
        # OpenVINO reads an empty .pdmodel as an empty model.
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
            # Two results of one tensor share its name, but a name must be unique.
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
    """The port's tensor name; if IR made by a tool lacks it, the node's name or its position."""
    return min(port.names) if len(port.names) == 1 else (port.any_name if port.names else fallback)


def _dim(dimension: "ov.Dimension") -> Dim:
    hi = dimension.get_max_length()
    return Dim(dimension.get_min_length(), None if hi < 0 else hi)


def _dimension(dim: Dim) -> "ov.Dimension":
    return ov.Dimension(dim.lo, -1 if dim.hi is None else dim.hi)
