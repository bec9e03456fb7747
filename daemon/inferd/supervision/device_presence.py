"""Finds out which devices are present, on threads that may block on a driver, and disables those that are gone."""

import asyncio
from collections.abc import Callable, Collection

from inferd.dispatcher import Dispatcher
from inferd.engine.device import family


class DevicePresence:
    """Calls ``present``, which may block on a driver, on threads; everything else runs on the event loop's thread."""

    def __init__(self, present: Callable[[str], bool]) -> None:
        self._present = present
        self.asking: asyncio.Task[None] | None = None
        # Devices whose threads are blocked on a driver, possibly for ever.
        self._waiting: set[str] = set()

    @property
    def waits(self) -> bool:
        """Whether a thread is blocked on a driver."""
        return bool(self._waiting)

    def look(self, dispatchers: Collection[Dispatcher]) -> None:
        """Check which devices of ``dispatchers`` are present, unless a check is still running."""
        # A CPU is always present; a compound device chooses among those present.
        asked = {
            stats.device
            for dispatcher in dispatchers
            for stats in dispatcher.device_stats
            if family(stats.device) in ("GPU", "NPU") and not stats.lost
        }
        if asked and (self.asking is None or self.asking.done()):
            self.asking = asyncio.create_task(self._find_absent(sorted(asked), list(dispatchers)))

    async def _find_absent(self, devices: list[str], dispatchers: list[Dispatcher]) -> None:
        absent = {device for device in devices if not await asyncio.to_thread(self._is_present, device)}
        for dispatcher in dispatchers:
            for index, stats in enumerate(dispatcher.device_stats):
                if stats.device in absent:
                    dispatcher.disable_device(index, "OpenVINO no longer finds it")

    def _is_present(self, device: str) -> bool:
        self._waiting.add(device)
        try:
            return self._present(device)
        finally:
            self._waiting.discard(device)
