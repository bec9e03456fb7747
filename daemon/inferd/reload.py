"""A reload: settings and repository are read again, and what can change while serving does."""

import asyncio
from collections.abc import Callable

import structlog

from inferd.catalog.catalog import Catalog
from inferd.config.daemon import Settings
from inferd.errors import InferdError
from inferd.repository.watch import Watch

log = structlog.get_logger("inferd.reload")

# Settings that a reload takes up; all others need a restart.
RELOADABLE = ("request_log",)


class Reloader:
    """Reloads one at a time; who asks while one goes on is served by one more after it.

    ``read`` gives the settings as they would be at a start now, ``take`` is given them for what is in
    :data:`RELOADABLE`. ``counts`` has the reloads so far by result.
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
        """Reload soon; if ``thorough``, also what was changed without a trace."""
        self._thorough = self._thorough or thorough
        self._wanted.set()

    async def run(self, begun: Callable[[], None], ended: Callable[[], None]) -> None:
        """Reload whenever asked, until cancelled; ``begun`` and ``ended`` are called around each."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            thorough, self._thorough = self._thorough, False
            begun()
            well, failed = self._apply_settings(), list[str]()
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
                log.warning("reloaded in part", **({"not_served_as_on_disk": failed} if failed else {}))
            ended()

    async def watch(self, watch: Watch, seconds: float) -> None:
        """Ask for a reload when the repository has changed, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            if await asyncio.to_thread(watch.changed):
                self.ask(thorough=False)

    def _apply_settings(self) -> bool:
        """False where the settings can't be read: then all of them stay."""
        try:
            settings = self._read()
        except InferdError as error:
            log.error("settings can't be used; those of before stay", problem=str(error))
            return False
        changed = {n for n in Settings.model_fields if getattr(settings, n) != getattr(self._settings, n)}
        for name in sorted(changed.difference(RELOADABLE)):
            log.warning("setting is taken up by a restart only", setting=name)
        self._take(settings)
        return True
