"""Whether the devices that models run on are present, and how much of their memory is used."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferd.engine.device import candidates
from inferd.engine.device_status import DeviceMemory
from inferd.metrics import instruments
from inferd.metrics.families import gauge


@dataclass(frozen=True, slots=True)
class _DeviceReading:
    at: float
    present: bool
    memory: DeviceMemory | None


_ABSENT = _DeviceReading(-math.inf, False, None)


class DeviceCollector(Collector):
    """Asks ``present`` and ``memory`` about each of ``devices``, and keeps the answers ``every`` so many seconds.

    A device counts as absent if ``present`` raises RuntimeError for it. The question may wait
    for a driver, and a driver that hangs must not take all metrics with it: one scrape asks, and
    other scrapes meanwhile show the last known state. Once it has taken ``every`` seconds, all
    devices count as absent, because it is unknown which one hangs.
    """

    def __init__(
        self,
        devices: Callable[[], Iterable[str]],
        present: Callable[[str], bool],
        memory: Callable[[str], DeviceMemory | None],
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._devices, self._present, self._memory = devices, present, memory
        self._every, self._clock = every, clock
        self._asking = Lock()
        self._since = math.inf
        self._answers: dict[str, _DeviceReading] = {}

    def collect(self) -> Iterator[Metric]:
        named = sorted(set(self._devices()))
        # A compound device has no memory of its own: what it lists has.
        plain = sorted({name for device in named for name in candidates(device) or [device]})
        self._ask([*named, *plain])
        answers = dict.fromkeys(named, _ABSENT) if self._clock() - self._since >= self._every else self._answers
        yield gauge(
            instruments.DEVICE_UP, (((device,), answers[device].present) for device in named if device in answers)
        )
        memories = [(device, memory) for device in plain if (memory := answers.get(device, _ABSENT).memory) is not None]
        yield gauge(
            instruments.DEVICE_MEMORY_USED,
            (((device, kind), used) for device, memory in memories for kind, used in memory.used.items()),
        )
        yield gauge(
            instruments.DEVICE_MEMORY,
            (((device,), memory.total) for device, memory in memories if memory.total is not None),
        )

    def _ask(self, devices: Iterable[str]) -> None:
        """Renew the answers that are old and forget those about other devices, unless another scrape does so."""
        if not self._asking.acquire(blocking=False):
            return
        try:
            now = self._since = self._clock()
            kept = {device: answer for device, answer in self._answers.items() if now - answer.at < self._every}
            self._answers = {device: kept.get(device) or self._answer(device) for device in dict.fromkeys(devices)}
        finally:
            self._since = math.inf
            self._asking.release()

    def _answer(self, device: str) -> _DeviceReading:
        present, memory = False, None
        with suppress(RuntimeError):
            present = self._present(device)
            memory = self._memory(device) if present else None
        return _DeviceReading(self._clock(), present, memory)
