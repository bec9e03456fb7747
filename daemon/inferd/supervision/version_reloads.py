"""The shell around :mod:`inferd.health.reload_backoff`: reloads versions that have lost a device."""

import time
from collections.abc import Callable, Coroutine, Iterable

import structlog

from inferd.catalog.catalog import Catalog
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.errors import ContentChanged, InferdError
from inferd.health.reload_backoff import ReloadBackoff, ReloadBackoffRules
from inferd.rollout.exchange import at_once

log = structlog.get_logger("inferd.supervision")

# Limit on hung versions of a model that can't be freed: each holds the memory of a whole version.
_MOST_STUCK = 2


class VersionReloads:
    """Reloads a version that has lost a device, or hangs there beyond repair, next to the old deployment; one reload
    per version at a time. ``ended`` is called after each."""

    def __init__(self, catalog: Catalog, rules: ReloadBackoffRules, ended: Callable[[], None]) -> None:
        self._catalog = catalog
        self._rules = rules
        self._ended = ended
        self._backoffs: dict[tuple[str, int], ReloadBackoff] = {}
        self._running: set[tuple[str, int]] = set()

    @property
    def running(self) -> bool:
        """Whether a version is being loaded at present."""
        return bool(self._running)

    def look(self, now: float, loaded: Iterable[tuple[ModelVersion, Deployment]]) -> list[Coroutine[None, None, None]]:
        """The reloads that are due now among the ``loaded`` versions."""
        loaded = list(loaded)
        known = {_key(model_version) for model_version, _ in loaded}
        self._backoffs = {key: backoff for key, backoff in self._backoffs.items() if key in known}
        due = []
        for model_version, deployment in loaded:
            if any(stats.lost or stats.wedged for stats in deployment.dispatcher.device_stats):
                key = _key(model_version)
                backoff = self._backoffs.setdefault(key, ReloadBackoff(self._rules))
                if key not in self._running and backoff.due(now):
                    self._running.add(key)
                    due.append(self._reload(model_version, deployment, backoff))
        return due

    def status_text(self, model_version: ModelVersion) -> str:
        """The reload attempts so far in words, "" if there were none."""
        backoff = self._backoffs.get(_key(model_version))
        return backoff.status_text if backoff is not None else ""

    def exhausted(self, model_version: ModelVersion) -> bool:
        """Whether all quick reloads of ``model_version`` failed."""
        key = _key(model_version)
        backoff = self._backoffs.get(key)
        return backoff is not None and backoff.exhausted and key not in self._running

    async def _reload(self, model_version: ModelVersion, deployment: Deployment, backoff: ReloadBackoff) -> None:
        why = ""
        try:
            if (stuck := self._catalog.unfreed(model_version.name)) >= _MOST_STUCK:
                why = f"{stuck} hung versions of it still hold memory; restart the daemon"
                return
            log.info("model reload started", **_labels(model_version))
            await self._catalog.roll_out(model_version, deployment.config, at_once)
        except ContentChanged:
            # The files it was loaded from have changed.
            why = (
                await self._loaded_as_it_is_now(model_version.name)
                if model_version.deployment is deployment
                else "it was unloaded"
            )
        except InferdError as error:
            why = str(error)
        except Exception:
            log.exception("model reload raised an unexpected exception", **_labels(model_version))
            why = "internal error"
        finally:
            self._running.discard(_key(model_version))
            backoff.tried(time.monotonic(), why)
            self._catalog.loads[model_version.name, "failed" if why else "ok"] += 1
            self._ended()
            if why:
                log.error("model not reloaded", **_labels(model_version), problem=why)

    async def _loaded_as_it_is_now(self, name: str) -> str:
        """Why it could not be loaded, "" if it was."""
        try:
            await self._catalog.load(name)
        except InferdError as error:
            return str(error)
        return ""


def _key(model_version: ModelVersion) -> tuple[str, int]:
    return model_version.name, model_version.version


def _labels(model_version: ModelVersion) -> dict[str, object]:
    return {"model": model_version.name, "version": model_version.version}
