"""The shell around health and reload backoff: looks at the models, sends probes, and acts on what they say."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping

import structlog

from inferd.catalog.catalog import Catalog
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.deployment.traffic_split import TrafficSplit
from inferd.dispatcher import Dispatcher
from inferd.engine.device import family
from inferd.errors import ContentChanged, InferdError, ModelUnavailable
from inferd.health.health import HealthObservation, HealthRules, HealthState, HealthTracker
from inferd.health.liveness import ProbeOutcome
from inferd.health.reload_backoff import ReloadBackoff, ReloadBackoffRules
from inferd.health.restart_policy import VersionHealth
from inferd.lifecycle import ModelState
from inferd.supervision import probe
from inferd.supervision.inline_runs import InlineRuns
from inferd.supervision.restart import Restarter

log = structlog.get_logger("inferd.supervision")

# A loss that runs tell of is acted on at once; this is for what only time tells.
_LOOK = 1.0
# So many versions of a model that hang and can't be freed are enough: each holds the memory of a whole one.
_MOST_STUCK = 2

# Model, version, device.
VersionDevice = tuple[str, str, str]


class HealthMonitor:
    """Keeps each model's readiness true from :meth:`start` to :meth:`stop`; all on the event loop's thread.

    A version that has failed takes no requests until it is well again; one that has lost a device, or hangs beyond
    repair there, is loaded anew beside what is left of it. ``present`` says whether a device is there, and may wait
    for a driver. ``restarter`` is told how the versions are, to judge whether a fresh process would do better, and
    ``inline_runs`` to judge where their runs are best computed.

    ``hung`` counts the runs that were given up because they hang, ``replaced`` the infer requests that others took the
    place of for that, since the start and over all that a version was loaded as.
    """

    def __init__(
        self,
        catalog: Catalog,
        present: Callable[[str], bool],
        rules: HealthRules | None = None,
        backoff_rules: ReloadBackoffRules | None = None,
        look: float = _LOOK,
        restarter: Restarter | None = None,
        inline_runs: InlineRuns | None = None,
    ) -> None:
        self._catalog = catalog
        self._present = present
        self._rules = rules or HealthRules()
        self._backoff_rules = backoff_rules or ReloadBackoffRules()
        self._interval = look
        self._restarter = restarter
        self._inline_runs = inline_runs
        self.hung: Counter[VersionDevice] = Counter()
        self.replaced: Counter[VersionDevice] = Counter()
        # What has been counted already.
        self._seen: dict[Dispatcher, tuple[tuple[int, int], ...]] = {}
        self._unready_reasons: dict[tuple[str, str], str] = {}
        self._health: dict[Dispatcher, HealthTracker] = {}
        self._failed: set[Dispatcher] = set()
        self._backoffs: dict[tuple[str, int], ReloadBackoff] = {}
        self._reloads_running: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        # Threads that wait for a driver, and may do so for ever.
        self._waiting: set[str] = set()
        self._stopped_reloading = False

    @property
    def stopped_short(self) -> bool:
        """Whether threads are left, after :meth:`stop`, that may never end."""
        return bool(self._waiting or self._stopped_reloading)

    def state(self, deployment: Deployment) -> HealthState:
        """What is thought of ``deployment``."""
        health = self._health.get(deployment.dispatcher)
        return health.state if health is not None else HealthState.HEALTHY

    @property
    def unready_reasons(self) -> Mapping[tuple[str, str], str]:
        """What keeps versions from being ready although they are loaded, by name and version. Any thread may ask."""
        return self._unready_reasons

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Let go of what was counted of ``versions``, of which nothing is there any more."""
        for counts in (self.hung, self.replaced):
            for key in [key for key in counts if key[:2] in versions]:
                del counts[key]

    def start(self) -> None:
        """Called once, on the loop."""
        self._looking = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """Look no more; what is being loaded is let go of. Harmless when called again."""
        self._stopped_reloading = bool(self._reloads_running)
        if self._restarter is not None:
            self._restarter.stop()
        tasks = [task for task in (self._looking, self._asking, *self._tasks) if task is not None]
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
                log.exception("the models' health could not be looked at")
            try:
                async with asyncio.timeout(self._until_next()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _until_next(self) -> float:
        """Seconds until something has to be looked at, whatever happens."""
        due = (seconds for health in self._health.values() if (seconds := health.until_unready) is not None)
        return min([self._interval, *due])

    async def _look(self) -> None:
        now = time.monotonic()
        held = [
            (model_version, deployment)
            for model_version, deployment in self._catalog.loaded()
            if model_version.state is ModelState.READY
        ]
        self._health = {
            deployment.dispatcher: self._health.get(deployment.dispatcher) or self._new(deployment, now)
            for _, deployment in held
        }
        self._failed &= self._health.keys()
        known = {(model_version.name, model_version.version) for model_version, _ in held}
        self._backoffs = {key: backoff for key, backoff in self._backoffs.items() if key in known}
        self._ask_devices([deployment for _, deployment in held])
        self._count(held)
        for model_version, deployment in held:
            health, observation = self._health[deployment.dispatcher], _observed(deployment.dispatcher)
            if health.look(now, observation):
                self._begin(self._try(health, deployment, health.probe_timeout(observation)))
            if any(stats.lost or stats.wedged for stats in deployment.dispatcher.device_stats):
                self._reload_if_due(model_version, deployment, now)
        unready_reasons = (
            (model_version, self._health[deployment.dispatcher].unready_reason) for model_version, deployment in held
        )
        self._unready_reasons = {
            (s.name, str(s.version)): unready_reason.value
            for s, unready_reason in unready_reasons
            if unready_reason is not None
        }
        for model_version, deployment in held:
            await self._show(model_version, deployment, self._health[deployment.dispatcher])
        for work in self._inline_runs.look(held) if self._inline_runs is not None else ():
            self._begin(work)
        if self._restarter is not None:
            self._restarter.look(
                now, [self._version_health(model_version, deployment) for model_version, deployment in held]
            )

    def _new(self, deployment: Deployment, now: float) -> HealthTracker:
        deployment.dispatcher.on_health_change = self._wake.set
        return HealthTracker(self._rules, now)

    async def _show(self, model_version: ModelVersion, deployment: Deployment, health: HealthTracker) -> None:
        """Have the catalog take requests, or not."""
        backoff = self._backoffs.get((model_version.name, model_version.version))
        said = [backoff.status_text] if backoff is not None and backoff.status_text else []
        lost = [f"{c.device} is used no more: {c.lost}" for c in deployment.dispatcher.device_stats if c.lost]
        reason, degraded_reason = (
            "; ".join([why, *said]) if why else "" for why in (health.unready_text, "; ".join(lost))
        )
        if bool(reason) != bool(model_version.unready_reason):
            level = log.error if reason else log.info
            level("model failed" if reason else "model is well again", **_labels(model_version), reason=reason)
        if health.state is not HealthState.FAILED:
            # What waits behind runs that hang may still be answered.
            self._failed.discard(deployment.dispatcher)
        elif deployment.dispatcher not in self._failed:
            self._failed.add(deployment.dispatcher)
            deployment.dispatcher.abort(ModelUnavailable(model_version.name, "failed", reason))
        await self._catalog.set_health(model_version, deployment, reason, "" if reason else degraded_reason)

    def _count(self, held: Iterable[tuple[ModelVersion, Deployment]]) -> None:
        """Add what has hung since the last look, also where another configuration is tried."""
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
        key, stats = (model_version.name, model_version.version), deployment.dispatcher.device_stats
        backoff = self._backoffs.get(key)
        return VersionHealth(
            frozenset(c.device for c in stats),
            frozenset(c.device for c in stats if c.lost),
            backoff is not None and backoff.exhausted and key not in self._reloads_running,
            model_version.effective_state is ModelState.READY,
        )

    async def _try(self, health: HealthTracker, deployment: Deployment, seconds: float) -> None:
        outcome = ProbeOutcome.UNANSWERED
        try:
            outcome = await probe.send(deployment, seconds)
        finally:
            health.ended(time.monotonic(), outcome)
            self._wake.set()

    # -- devices ----------------------------------------------------------------------

    def _ask_devices(self, deployments: list[Deployment]) -> None:
        """Find out which devices are there, unless that is still being found out."""
        # A CPU is there as long as we are; who lists several devices chooses among those that are.
        asked = {
            stats.device
            for deployment in deployments
            for stats in deployment.dispatcher.device_stats
            if family(stats.device) in ("GPU", "NPU") and not stats.lost
        }
        if asked and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._find_absent(sorted(asked), deployments))

    async def _find_absent(self, devices: list[str], deployments: list[Deployment]) -> None:
        absent = {device for device in devices if not await asyncio.to_thread(self._is_present, device)}
        for deployment in deployments:
            for index, stats in enumerate(deployment.dispatcher.device_stats):
                if stats.device in absent:
                    deployment.dispatcher.disable_device(index, "OpenVINO does not find it any more")

    def _is_present(self, device: str) -> bool:
        self._waiting.add(device)
        try:
            return self._present(device)
        finally:
            self._waiting.discard(device)

    # -- loading anew -----------------------------------------------------------------

    def _reload_if_due(self, model_version: ModelVersion, deployment: Deployment, now: float) -> None:
        key = (model_version.name, model_version.version)
        backoff = self._backoffs.setdefault(key, ReloadBackoff(self._backoff_rules))
        if key not in self._reloads_running and backoff.due(now):
            self._reloads_running.add(key)
            self._begin(self._reload(model_version, deployment, backoff))

    async def _reload(self, model_version: ModelVersion, deployment: Deployment, backoff: ReloadBackoff) -> None:
        why = ""
        try:
            if (stuck := self._catalog.unfreed(model_version.name)) >= _MOST_STUCK:
                why = f"{stuck} versions of it hang and hold their memory; restart the daemon"
                return
            log.info("loading the model anew", **_labels(model_version))
            await self._catalog.roll_out(model_version, deployment.config, _at_once)
        except ContentChanged:
            # What it was loaded from is there no more.
            why = (
                await self._loaded_as_it_is_now(model_version.name)
                if model_version.deployment is deployment
                else "it was unloaded"
            )
        except InferdError as error:
            why = str(error)
        except Exception:
            log.exception("model could not be loaded anew", **_labels(model_version))
            why = "internal error"
        finally:
            self._reloads_running.discard((model_version.name, model_version.version))
            backoff.tried(time.monotonic(), why)
            self._catalog.loads[model_version.name, "failed" if why else "ok"] += 1
            self._wake.set()
            if why:
                log.error("model was not loaded anew", **_labels(model_version), problem=why)

    async def _loaded_as_it_is_now(self, name: str) -> str:
        """Why it could not be, "" where it could."""
        try:
            await self._catalog.load(name)
        except InferdError as error:
            return str(error)
        return ""

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _at_once(_: TrafficSplit) -> bool:
    """Nothing is left to compare it with."""
    return True


def _observed(dispatcher: Dispatcher) -> HealthObservation:
    stats = dispatcher.device_stats
    return HealthObservation(
        well=sum(c.succeeded for c in stats),
        failed=sum(c.failed for c in stats),
        hung=sum(c.hung for c in stats),
        busy=not dispatcher.scheduler.idle,
        run=dispatcher.scheduler.service_time / 1e9,
        gone="; ".join(f"{c.device}: {c.lost}" for c in stats) if all(c.lost for c in stats) else "",
        hangs=any(c.wedged and c.wedged == c.lost for c in stats),
        stalled=dispatcher.stalled,
    )


def _labels(model_version: ModelVersion) -> dict[str, object]:
    return {"model": model_version.name, "version": model_version.version}
