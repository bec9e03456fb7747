"""The shell around :mod:`inferd.health.restart_policy`: has a child test a device, and ends this process."""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Self

import structlog

from inferd.config.daemon import Settings
from inferd.health.restart_policy import RestartPolicy, RestartRules, RestartState, VersionHealth
from inferd.systemd.notify import runs_as_service

log = structlog.get_logger("inferd.supervision")


class Restarter:
    """Ends the process when ``policy`` says so; all on the event loop's thread.

    ``unusable`` returns why a child process could not use a device, "" if it could; it may take long, and runs on its
    own thread. ``end`` is called once, with the device that the next process can use.
    """

    def __init__(self, policy: RestartPolicy, unusable: Callable[[str], str], end: Callable[[str], None]) -> None:
        self._policy = policy
        self._unusable = unusable
        self._end = end
        self._trying: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: Settings, unusable: Callable[[str], str], end: Callable[[str], None]) -> Self | None:
        """The restarter that ``settings`` configure; None if no supervisor would start another process."""
        if settings.restart_on_device_loss == "off" or not runs_as_service():
            return None
        return cls(RestartPolicy(RestartRules.of(settings), time.monotonic()), unusable, end)

    def look(self, now: float, versions: Collection[VersionHealth]) -> None:
        """Take in the health of all ``versions``, and test a device if that is due."""
        if self._trying is not None and not self._trying.done():
            return
        if (device := self._policy.look(now, versions)) is not None:
            self._trying = asyncio.create_task(self._try(device))

    def stop(self) -> None:
        """Stop waiting for a child. Harmless when called again."""
        if self._trying is not None:
            self._trying.cancel()

    async def _try(self, device: str) -> None:
        log.info("device check started in a fresh process", device=device)
        why = await asyncio.to_thread(self._unusable, device)
        self._policy.answered(time.monotonic(), usable=not why)
        if why:
            log.error("device check failed in a fresh process", device=device, problem=why)
        elif self._policy.state is RestartState.RESTARTING:
            self._end(device)
