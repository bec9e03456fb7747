"""The shell around health: observes the models, sends probes, and acts on the results."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import structlog

from inferd.catalog.catalog import Catalog
from inferd.config.daemon import Settings
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.dispatcher import Dispatcher
from inferd.errors import ModelUnavailable
from inferd.health.health import HealthRules, HealthState, HealthTracker
from inferd.health.liveness import LivenessRules
from inferd.health.probes import ProbeOutcome
from inferd.health.reload_backoff import ReloadBackoffRules
from inferd.health.restart_policy import VersionHealth
from inferd.lifecycle import ModelState
from inferd.supervision import probe
from inferd.supervision.device_presence import DevicePresence
from inferd.supervision.inline_runs import InlineRuns
from inferd.supervision.observation import observed
from inferd.supervision.restart import Restarter
from inferd.supervision.version_reloads import VersionReloads

log = structlog.get_logger("inferd.supervision")

# A loss that shows in a run is handled at once; this interval is for changes that only time shows.
_LOOK = 1.0

# Model, version, device.
VersionDevice = tuple[str, str, str]
# A loaded version, its deployment, and its health.
_Held = tuple[ModelVersion, Deployment, HealthTracker]


@dataclass(frozen=True, slots=True)
class MonitorRules:
    """The rules for each version's health and reloads; ``look`` is the interval between two looks, in seconds."""

    health: HealthRules = field(default_factory=HealthRules)
    backoff: ReloadBackoffRules = field(default_factory=ReloadBackoffRules)
    look: float = _LOOK

    @classmethod
    def of(cls, settings: Settings, liveness: LivenessRules | None = None) -> Self:
        """The rules that ``settings`` configure; ``liveness`` are the watchdog's, None without a watchdog."""
        return cls(HealthRules.of(settings, liveness))


class HealthMonitor:
    """Keeps each model's readiness up to date from :meth:`start` to :meth:`stop`; all on the event loop's thread.

    A failed version takes no requests until it recovers. A version that has lost a device, or hangs there beyond
    repair, is reloaded next to the old deployment. ``present`` says whether a device is present, and may block on a
    driver. ``restarter`` decides from the versions' health whether to restart the process, ``inline_runs`` whether
    their runs should be inline.

    Per version, across its reloads, ``hung`` counts hung runs that were given up, and ``replaced`` the infer requests
    replaced after such runs.
    """

    def __init__(
        self,
        catalog: Catalog,
        present: Callable[[str], bool],
        rules: MonitorRules | None = None,
        *,
        restarter: Restarter | None = None,
        inline_runs: InlineRuns | None = None,
    ) -> None:
        self._catalog = catalog
        self._rules = rules or MonitorRules()
        self._restarter = restarter
        self._inline_runs = inline_runs
        self.hung: Counter[VersionDevice] = Counter()
        self.replaced: Counter[VersionDevice] = Counter()
        # The counts seen so far.
        self._seen: dict[Dispatcher, tuple[tuple[int, int], ...]] = {}
        self._unready_reasons: dict[tuple[str, str], str] = {}
        self._health: dict[Dispatcher, HealthTracker] = {}
        self._failed: set[Dispatcher] = set()
        self._silent: set[HealthTracker] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._presence = DevicePresence(present)
        self._reloads = VersionReloads(catalog, self._rules.backoff, self._wake.set)
        self._stopped_reloading = False

    @property
    def stopped_short(self) -> bool:
        """Whether :meth:`stop` left threads behind that may never end."""
        return self._presence.waits or self._stopped_reloading

    def state(self, deployment: Deployment) -> HealthState:
        """The health state of ``deployment``."""
        health = self._health.get(deployment.dispatcher)
        return health.state if health is not None else HealthState.HEALTHY

    @property
    def unready_reasons(self) -> Mapping[tuple[str, str], str]:
        """Why loaded versions are not ready, by name and version. Any thread may ask."""
        return self._unready_reasons

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Drop the counts of ``versions``, which are gone."""
        for counts in (self.hung, self.replaced):
            for key in [key for key in counts if key[:2] in versions]:
                del counts[key]

    def start(self) -> None:
        """Called once, on the loop."""
        self._looking = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """Stop watching, and abandon loads in progress. Harmless when called again."""
        self._stopped_reloading = self._reloads.running
        if self._restarter is not None:
            self._restarter.stop()
        tasks = [task for task in (self._looking, self._presence.asking, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep_looking(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
            except Exception:
                log.exception("health check failed")
            try:
                async with asyncio.timeout(self._until_next()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _until_next(self) -> float:
        """Seconds until the next look is due if nothing happens before."""
        due = (seconds for health in self._health.values() if (seconds := health.until_unready) is not None)
        return min([self._rules.look, *due])

    def silent(self) -> dict[str, float]:
        """The versions that have owed an answer for too long, as ``model/version``, with the seconds.

        Observes all versions first, so that the result is current. Empty without a watchdog.
        """
        if self._rules.health.liveness is None:
            return {}
        now = time.monotonic()
        held = self._observe(now)
        silent = {
            health: (_name(model_version), seconds)
            for model_version, _, health in held
            if (seconds := health.silent_for(now)) is not None
        }
        for health in silent.keys() - self._silent:
            name, seconds = silent[health]
            log.error("model silent; watchdog not fed", model=name, seconds=round(seconds))
        for model_version, _, health in held:
            # A version that was taken out of service meanwhile has not responded.
            if health in self._silent and health not in silent and health.unready_reason is None:
                log.info("model responded again", model=_name(model_version))
        self._silent = set(silent)
        return dict(silent.values())

    def _observe(self, now: float) -> list[_Held]:
        """Update each version's health, and send the probes that are due."""
        loaded = [held for held in self._catalog.loaded() if held[0].state is ModelState.READY]
        self._health = {
            deployment.dispatcher: self._health.get(deployment.dispatcher) or self._new(deployment, now)
            for _, deployment in loaded
        }
        held = [
            (model_version, deployment, self._health[deployment.dispatcher]) for model_version, deployment in loaded
        ]
        for _, deployment, health in held:
            if (seconds := health.look(now, observed(deployment.dispatcher))) is not None:
                self._begin(self._try(health, deployment, seconds))
        return held

    async def _look(self) -> None:
        now = time.monotonic()
        held = self._observe(now)
        loaded = [(model_version, deployment) for model_version, deployment, _ in held]
        self._failed &= self._health.keys()
        self._presence.look([deployment.dispatcher for _, deployment in loaded])
        self._count(loaded)
        for reload in self._reloads.look(now, loaded):
            self._begin(reload)
        self._unready_reasons = {
            (model_version.name, str(model_version.version)): unready_reason.value
            for model_version, _, health in held
            if (unready_reason := health.unready_reason) is not None
        }
        for model_version, deployment, health in held:
            await self._show(model_version, deployment, health)
        for work in self._inline_runs.look(loaded) if self._inline_runs is not None else ():
            self._begin(work)
        if self._restarter is not None:
            self._restarter.look(
                now, [self._version_health(model_version, deployment) for model_version, deployment in loaded]
            )

    def _new(self, deployment: Deployment, now: float) -> HealthTracker:
        deployment.dispatcher.on_health_change = self._wake.set
        return HealthTracker(self._rules.health, now)

    async def _show(self, model_version: ModelVersion, deployment: Deployment, health: HealthTracker) -> None:
        """Let the catalog accept or refuse requests."""
        said = [tries] if (tries := self._reloads.status_text(model_version)) else []
        reason, degraded_reason = (
            "; ".join([why, *said]) if why else "" for why in (health.unready_text, health.degraded_text)
        )
        if bool(reason) != bool(model_version.unready_reason):
            level = log.error if reason else log.info
            level("model failed" if reason else "model recovered", **_labels(model_version), reason=reason)
        if health.state is not HealthState.FAILED:
            # Requests that wait behind hung runs may still be answered.
            self._failed.discard(deployment.dispatcher)
        elif deployment.dispatcher not in self._failed:
            self._failed.add(deployment.dispatcher)
            deployment.dispatcher.abort(ModelUnavailable(model_version.name, "failed", reason))
        await self._catalog.set_health(model_version, deployment, reason, "" if reason else degraded_reason)

    def _count(self, held: Iterable[tuple[ModelVersion, Deployment]]) -> None:
        """Count the runs that have hung since the last look, including those of a candidate on trial."""
        deployments = [
            (s, one) for s, deployment in held for one in (deployment, s.split.candidate if s.split else None) if one
        ]
        before, self._seen = self._seen, {}
        for model_version, deployment in deployments:
            dispatcher = deployment.dispatcher
            counts = self._seen[dispatcher] = tuple((c.hung, c.replaced) for c in dispatcher.device_stats)
            known = before.get(dispatcher, ((0, 0),) * len(counts))
            for stats, (hung, replaced), (hung_before, replaced_before) in zip(
                dispatcher.device_stats, counts, known, strict=True
            ):
                key = model_version.name, str(model_version.version), stats.device
                self.hung[key] += hung - hung_before
                self.replaced[key] += replaced - replaced_before

    def _version_health(self, model_version: ModelVersion, deployment: Deployment) -> VersionHealth:
        stats = deployment.dispatcher.device_stats
        return VersionHealth(
            frozenset(c.device for c in stats),
            frozenset(c.device for c in stats if c.lost),
            self._reloads.exhausted(model_version),
            model_version.effective_state is ModelState.READY,
        )

    async def _try(self, health: HealthTracker, deployment: Deployment, seconds: float) -> None:
        outcome = ProbeOutcome.UNANSWERED
        try:
            outcome = await probe.send(deployment, seconds)
        finally:
            health.ended(time.monotonic(), outcome)
            self._wake.set()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _name(model_version: ModelVersion) -> str:
    return f"{model_version.name}/{model_version.version}"


def _labels(model_version: ModelVersion) -> dict[str, object]:
    return {"model": model_version.name, "version": model_version.version}
