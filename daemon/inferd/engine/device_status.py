"""Whether devices are still there, and how much of their memory is used.

What GPU and NPU say is written from OpenVINO's documentation; only the CPU was asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferd.engine import device as devices
from inferd.engine.runtime import ov
from inferd.errors import DeviceAbsent


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device's memory: what this process uses, by kind, and what there is; None where it does not tell."""

    used: Mapping[str, int]
    total: int | None


class DeviceStatus:
    """Asks ``core``, which has to be the one that models are loaded with: each counts its own memory.

    Both questions may wait for a driver.
    """

    def __init__(self, core: "ov.Core") -> None:
        self._core = core

    def present(self, device: str) -> bool:
        """Whether OpenVINO finds what ``device``, such as ``GPU.1`` or ``AUTO:GPU,CPU``, needs. Raises nothing.

        The GPU's plugin lists what it found when it was first used: a GPU that breaks later
        is still there by this, and is noticed by the runs that fail.
        """
        try:
            devices.resolve(device, self._core.available_devices)
        except (RuntimeError, DeviceAbsent):
            return False
        return True

    def memory(self, device: str) -> DeviceMemory | None:
        """Memory of ``device``; None where it tells nothing. Raises nothing.

        A CPU tells nothing, as the process's own memory says it, and neither does a compound
        device: those it lists do.
        """
        match devices.family(device):
            case "GPU":
                kinds = self._property(device, "GPU_MEMORY_STATISTICS")
                found = {str(kind): _bytes(used) for kind, used in kinds.items()} if isinstance(kinds, Mapping) else {}
                total = _bytes(self._property(device, "GPU_DEVICE_TOTAL_MEM_SIZE"))
            case "NPU":
                # The memory that its driver calls so: the NPU has no other.
                found = {"ddr": _bytes(self._property(device, "NPU_DEVICE_ALLOC_MEM_SIZE"))}
                total = _bytes(self._property(device, "NPU_DEVICE_TOTAL_MEM_SIZE"))
            case _:
                return None
        known = {kind: used for kind, used in found.items() if used is not None}
        return DeviceMemory(known, total) if known or total is not None else None

    def _property(self, device: str, name: str) -> Any:
        try:
            return self._core.get_property(device, name)
        except (RuntimeError, TypeError):
            # TypeError: of a type that has no counterpart in Python.
            return None


def _bytes(value: Any) -> int | None:
    try:
        return max(0, int(value))
    except (TypeError, ValueError, OverflowError):
        return None
