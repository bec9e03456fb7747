"""Compiled models: imported from the cache of blobs if possible, otherwise compiled and cached."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Any, Literal, NamedTuple

import structlog

from inferd.axes import AXES, ChoiceAxis
from inferd.engine import device as devices
from inferd.engine import fused_reductions, state, unwritten_outputs
from inferd.engine.cache import BlobCache, blob_key
from inferd.engine.runtime import ov, version
from inferd.engine.source import ModelSource
from inferd.errors import one_line

log = structlog.get_logger("inferd.engine")

# One blob serves every value of these: an import honours new ones (OpenVINO facts 10 and 27).
_TUNABLE = {"PERFORMANCE_HINT", "CPU_RUNTIME_CACHE_CAPACITY"} | {
    axis.property for axis in AXES.values() if axis.property and not (isinstance(axis, ChoiceAxis) and axis.in_blob)
}

# What the CPU plugin prepares for each combination of shapes is kept by number, 5000 by default, and not by size: for
# convolutions more than a gigabyte (OpenVINO fact 53). So many combinations are kept of a model instead, if it is less.
_PREPARED = "CPU_RUNTIME_CACHE_CAPACITY"
_PREPARED_SHAPES, _MOST_PREPARED = 64, 5000
_PREPARES_NOTHING = ("Parameter", "Constant", "Result")


class CompileResult(NamedTuple):
    """A compiled model, whether it came from the cache, its blob if the cache holds one now, and whether it can export
    another blob."""

    model: "ov.CompiledModel"
    from_cache: bool
    blob: Callable[[], bytes | None] = lambda: None
    exports: bool = True


class Compiler:
    """Compiles models on ``core``. Safe to call from several threads. ``lookups`` counts cache lookups by result.
    Unless it ``maps``, compiled models of cached devices don't use the model's files."""

    def __init__(self, core: "ov.Core", cache: BlobCache, *, maps: bool = False) -> None:
        self._core = core
        self._cache = cache
        self._maps = maps
        self._counting = Lock()
        self.lookups: Counter[str] = Counter(hit=0, miss=0, refused=0)

    def compile(
        self, source: ModelSource, model: "ov.Model", target: str, properties: Mapping[str, Any]
    ) -> CompileResult:
        """``model``, read from ``source``, on the resolved device ``target``.

        Raises RuntimeError if OpenVINO does, and ContentChanged if the compiled content may differ from what ``source``
        was settled with.
        """
        if target == "CPU" and model.is_dynamic():
            properties = {_PREPARED: prepared_capacity(model), **properties}
        if not self.caches(target):
            compiled = self._compiled(model, target, properties)
            source.check()
            return CompileResult(compiled, from_cache=False)
        key = self.key(source, target, properties)
        kept = partial(self._cache.load, key)
        with self._cache.lock(key):
            result: Literal["hit", "miss", "refused"] = "miss"
            if (blob := self._cache.load(key)) is not None:
                try:
                    compiled = self._core.import_model(blob, target, dict(properties))
                    self._count("hit")
                    return CompileResult(compiled, True, kept, exports=False)
                except RuntimeError as error:
                    log.warning("cached blob refused", model=source.name, problem=one_line(str(error).strip(), 1000))
                    result = "refused"
            self._count(result)
            compiled = self._compiled(model, target, properties)
            source.verify()
            blob = compiled.export_model().getvalue()
            self._cache.store(key, blob)
            if self._maps:
                return CompileResult(compiled, from_cache=False, blob=kept)
            # A model that was not imported may still map its weights from the file (OpenVINO fact 45).
            return CompileResult(
                self._core.import_model(blob, target, dict(properties)), from_cache=False, blob=kept, exports=False
            )

    def _compiled(self, model: "ov.Model", target: str, properties: Mapping[str, Any]) -> "ov.CompiledModel":
        """Raises RuntimeError, also if the compiled model would give wrong answers."""
        compiled = self._core.compile_model(model, target, dict(properties))
        if target == "CPU" and (problem := fused_reductions.misread(model, compiled)):
            raise RuntimeError(problem)
        return compiled

    def key(self, source: ModelSource, target: str, properties: Mapping[str, Any]) -> str:
        """The cache key for the content of ``source``, which is settled, compiled with ``properties``."""
        return blob_key(source.digest, self._blob_facts(source, target, properties))

    def _count(self, result: Literal["hit", "miss", "refused"]) -> None:
        with self._counting:
            self.lookups[result] += 1

    def caches(self, target: str) -> bool:
        """Whether models compiled for ``target`` are cached."""
        # Compound devices (AUTO, HETERO, ...) compile for several devices; only a plain device has a single blob.
        if not self._cache.enabled or devices.family(target) not in ("CPU", "GPU", "NPU"):
            return False
        return "EXPORT_IMPORT" in self._core.get_property(target, "OPTIMIZATION_CAPABILITIES")

    def _blob_facts(self, source: ModelSource, target: str, properties: Mapping[str, Any]) -> dict[str, str]:
        facts = {f"property {k}": str(v) for k, v in properties.items() if k not in _TUNABLE}
        plain = devices.family(target) in ("CPU", "GPU", "NPU")
        return facts | {
            "openvino": version(),
            "unwritten": str(unwritten_outputs.REVISION),
            "fused": str(fused_reductions.REVISION),
            "device": f"{target} {self._core.get_property(target, 'FULL_DEVICE_NAME') if plain else ''}",
            "shapes": repr(sorted(source.config.shapes.items())),
            "batching": f"{source.config.batching.max_size} {sorted(state.batch_axes(source.config).items())}",
            "preprocessing": repr(sorted(source.config.preprocessing.items())),
        }


def prepared_capacity(model: "ov.Model") -> int:
    """How many things prepared for an operation and its shapes the CPU plugin may keep for ``model``."""
    prepared = sum(node.get_type_name() not in _PREPARES_NOTHING for node in model.get_ops())
    return min(_MOST_PREPARED, _PREPARED_SHAPES * max(1, prepared))
