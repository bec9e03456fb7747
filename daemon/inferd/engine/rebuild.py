"""Rebuilds a compiled model that a failed run has tainted.

On the CPU, the nodes of a graph with dynamic shapes remember the shapes of their last run. A run that fails or is
cancelled leaves some nodes with memory for one shape and another shape on record. The next runs fail, or give wrong
answers, until each of these nodes has seen yet another shape (OpenVINO fact 39). Which nodes are affected can't be
seen from outside, so the whole graph is replaced.
"""

from collections.abc import Callable, Mapping
from typing import Any

from inferd.engine import device as devices
from inferd.engine.runtime import ov

# Operations with bodies, whose shapes are decided inside.
BODIES = frozenset({"Loop", "TensorIterator", "If"})

# Blobs up to this size are kept in memory.
_SMALL = 32 << 20

Rebuilder = Callable[["ov.CompiledModel"], Callable[[], "ov.CompiledModel"]]
"""Takes what it needs from a compiled model about to be freed, and returns a function that compiles it again."""


def taints_on_failure(model: "ov.Model", target: str) -> bool:
    """Whether a run of ``model`` that ends early on the resolved device ``target`` affects later ones: on a CPU, with
    dynamic shapes, of inputs or inside."""
    if devices.family(target) in ("GPU", "NPU"):
        # These plugins were not seen to remember shapes; a failure there is handled as the device's.
        return False
    for node in model.get_ops():
        if node.get_type_name() in BODIES:
            return True
        if any(output.partial_shape.is_dynamic for output in node.outputs()):
            return True
    return False


def rebuilder(
    core: "ov.Core",
    model: "ov.Model",
    target: str,
    properties: Mapping[str, Any],
    blob: Callable[[], bytes | None],
    *,
    exports: bool,
) -> Rebuilder:
    """How to rebuild what was compiled from ``model`` for ``target``: from ``blob`` if there is one, else by exporting
    it if it ``exports``. Both steps raise RuntimeError."""
    if devices.family(target) != "CPU":
        # A compound device can't export: keep the model itself.
        return lambda _: lambda: core.compile_model(model, target, dict(properties))
    kept: list[bytes] = []

    def through_its_blob(compiled: "ov.CompiledModel") -> Callable[[], "ov.CompiledModel"]:
        found = kept[0] if kept else blob()
        if found is None and exports:
            # Only a compiled model can export: the export of an imported one can't be imported (OpenVINO fact 39).
            found = compiled.export_model().getvalue()
            kept.append(found)
        if found is None:
            raise RuntimeError("its blob is no longer in the cache")
        if not kept and len(found) <= _SMALL:
            kept.append(found)
        return lambda: core.import_model(found, target, dict(properties))

    return through_its_blob
