"""Whether devices are present, and how much of their memory is used.

GPU and NPU are handled by OpenVINO's documentation; only the CPU was tested.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferd.engine import device as devices
from inferd.engine.runtime import ov
from inferd.errors import DeviceAbsent


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device's memory: used by this process, by kind, and the total; None if not reported."""

    used: Mapping[str, int]
    total: int | None


class DeviceStatus:
    """Queries ``core``, which must be the one that models are loaded with: each counts its own memory.

    Both queries may block on a driver.
    """

    def __init__(self, core: "ov.Core") -> None:
        self._core = core

    def present(self, device: str) -> bool:
        """Whether OpenVINO finds all devices of ``device``, such as ``GPU.1`` or ``AUTO:GPU,CPU``. Never raises.

        The GPU plugin lists the devices found at its first use: a GPU that breaks later still counts as
        present, and only failing runs reveal it.
        """
        try:
            devices.resolve(device, self._core.available_devices)
        except (RuntimeError, DeviceAbsent):
            return False
        return True

    def memory(self, device: str) -> DeviceMemory | None:
        """Memory of ``device``; None if it reports nothing. Never raises.

        A CPU reports nothing because it uses the process's own memory, and a compound device because the
        devices it lists report theirs.
        """
        match devices.family(device):
            case "GPU":
                kinds = self._property(device, "GPU_MEMORY_STATISTICS")
                found = {str(kind): _bytes(used) for kind, used in kinds.items()} if isinstance(kinds, Mapping) else {}
                total = _bytes(self._property(device, "GPU_DEVICE_TOTAL_MEM_SIZE"))
            case "NPU":
                # The driver's name for it; the NPU has no other memory.
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
            # TypeError: the property's type has no Python counterpart.
            return None


def _bytes(value: Any) -> int | None:
    try:
        return max(0, int(value))
    except (TypeError, ValueError, OverflowError):
        return None
