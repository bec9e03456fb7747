"""A reload: reads settings and repository again, and applies what can change while serving."""

import asyncio
from collections.abc import Callable

import structlog

from inferd.catalog.catalog import Catalog
from inferd.config.daemon import Settings
from inferd.errors import InferdError
from inferd.repository.watch import Watch

log = structlog.get_logger("inferd.reload")

# Settings that a reload applies; all others need a restart.
RELOADABLE = ("request_log",)


class Reloader:
    """Reloads one at a time; requests during a reload cause one more after it.

    ``read`` returns the settings that a start would use now; ``take`` applies those in :data:`RELOADABLE`. ``counts``
    has the reloads so far by result.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        *,
        read: Callable[[], Settings],
        take: Callable[[Settings], None],
    ) -> None:
        self._settings = settings
        self._read = read
        self._take = take
        self._catalog = catalog
        self._wanted = asyncio.Event()
        self._thorough = False
        self.counts = {"ok": 0, "failed": 0}

    def ask(self, *, thorough: bool = True) -> None:
        """Reload soon; if ``thorough``, also find files whose content changed but not their size and time."""
        self._thorough = self._thorough or thorough
        self._wanted.set()

    async def run(self, begun: Callable[[], None], ended: Callable[[], None]) -> None:
        """Reload on request, until cancelled; ``begun`` and ``ended`` are called around each reload."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            thorough, self._thorough = self._thorough, False
            begun()
            well, failed = await self._apply_settings(), list[str]()
            try:
                failed = await self._catalog.reload(thorough=thorough)
            except InferdError as error:
                log.error("model repository not read", problem=str(error))
                well = False
            except Exception:
                log.exception("reload failed")
                well = False
            if well and not failed:
                self.counts["ok"] += 1
                log.info("reloaded")
            else:
                self.counts["failed"] += 1
                log.warning("reloaded partially", **({"not_served_as_on_disk": failed} if failed else {}))
            ended()

    async def watch(self, watch: Watch, seconds: float) -> None:
        """Ask for a reload when the repository has changed, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            if await asyncio.to_thread(watch.changed):
                self.ask(thorough=False)

    async def _apply_settings(self) -> bool:
        """False if the settings can't be read: then all of them stay."""
        try:
            settings = await asyncio.to_thread(self._read)
        except InferdError as error:
            log.error("settings not reloaded", problem=str(error))
            return False
        changed = {n for n in Settings.model_fields if getattr(settings, n) != getattr(self._settings, n)}
        for name in sorted(changed.difference(RELOADABLE)):
            log.warning("setting not applied; restart required", setting=name)
        self._take(settings)
        return True
