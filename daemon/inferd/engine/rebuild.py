"""Rebuilds a compiled model that a failed run has tainted.

On the CPU the nodes of a graph whose shapes are not fixed remember the shapes that they ran on last. A run that fails
or is cancelled leaves some of them with memory of one shape and the belief that it is another's. The next runs fail, or
give wrong answers, until each such node has seen yet another shape (OpenVINO fact 39). Which nodes those are can't be
seen from outside, so a fresh graph takes the place of the old one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from inferd.engine import device as devices
from inferd.engine.runtime import ov

# What has bodies decides about shapes inside of them.
BODIES = frozenset({"Loop", "TensorIterator", "If"})

# A blob of no more bytes is not read from the disk each time.
_SMALL = 32 << 20

Rebuilder = Callable[["ov.CompiledModel"], Callable[[], "ov.CompiledModel"]]
"""Takes what it needs from a compiled model that is about to be let go of, and returns what makes its like."""


def taints_on_failure(model: "ov.Model", target: str) -> bool:
    """Whether a run of ``model`` that ends early on the resolved device ``target`` harms later ones: on a CPU, with
    shapes that are not fixed, of inputs or inside."""
    if devices.family(target) in ("GPU", "NPU"):
        # Their graphs have not been seen to remember; what fails there is the device's, and has its own ways.
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
    """How to rebuild what was compiled from ``model`` for ``target``: from ``blob`` if there is one, else from what it
    ``exports``. Both steps raise RuntimeError."""
    if devices.family(target) != "CPU":
        # A compound device exports nothing: the model itself is kept for it.
        return lambda _: lambda: core.compile_model(model, target, dict(properties))
    kept: list[bytes] = []

    def through_its_blob(compiled: "ov.CompiledModel") -> Callable[[], "ov.CompiledModel"]:
        found = kept[0] if kept else blob()
        if found is None and exports:
            # Only the first has it: what was imported exports what can't be imported (OpenVINO fact 39).
            found = compiled.export_model().getvalue()
            kept.append(found)
        if found is None:
            raise RuntimeError("its blob is no longer in the cache")
        if not kept and len(found) <= _SMALL:
            kept.append(found)
        return lambda: core.import_model(found, target, dict(properties))

    return through_its_blob
