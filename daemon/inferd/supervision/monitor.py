"""The shell around health and rebuilding: looks at the models, sends canaries, and acts on what they say."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping

import structlog

from inferd.catalog import Catalog, Deployment, ModelVersion, TrafficSplit
from inferd.dispatcher import Dispatcher
from inferd.engine.device import family
from inferd.errors import ContentChanged, InferdError, ModelUnavailable
from inferd.lifecycle import ModelState
from inferd.supervision import canary
from inferd.supervision.health import Health, HealthRules, Sight, Standing
from inferd.supervision.inline_runs import InlineRuns
from inferd.supervision.making_way import MakingWay
from inferd.supervision.rebuilding import Rebuilding, RebuildRules
from inferd.supervision.renewal import Plight
from inferd.supervision.vitality import Ending

log = structlog.get_logger("inferd.supervision")

# A loss that runs tell of is acted on at once; this is for what only time tells.
_LOOK = 1.0
# So many versions of a model that hang and can't be freed are enough: each holds the memory of a whole one.
_MOST_STUCK = 2

# Model, version, device.
Place = tuple[str, str, str]


class HealthMonitor:
    """Keeps each model's readiness true from :meth:`start` to :meth:`stop`; all on the event loop's thread.

    A version that has failed takes no requests until it is well again; one that has lost a device, or hangs beyond
    repair there, is loaded anew beside what is left of it. ``present`` says whether a device is there, and may wait
    for a driver. ``making_way`` is told how the versions are, to judge whether a fresh process would do better, and
    ``inline_runs`` to judge where their runs are best computed.

    ``hung`` counts the runs that were given up because they hang, ``replaced`` the infer requests that others took the
    place of for that, since the start and over all that a version was loaded as.
    """

    def __init__(
        self,
        catalog: Catalog,
        present: Callable[[str], bool],
        rules: HealthRules | None = None,
        rebuilds: RebuildRules | None = None,
        look: float = _LOOK,
        making_way: MakingWay | None = None,
        inline_runs: InlineRuns | None = None,
    ) -> None:
        self._catalog = catalog
        self._present = present
        self._rules = rules or HealthRules()
        self._rebuild_rules = rebuilds or RebuildRules()
        self._look_seconds = look
        self._making_way = making_way
        self._inline_runs = inline_runs
        self.hung: Counter[Place] = Counter()
        self.replaced: Counter[Place] = Counter()
        # What has been counted already.
        self._seen: dict[Dispatcher, tuple[tuple[int, int], ...]] = {}
        self._ailments: dict[tuple[str, str], str] = {}
        self._health: dict[Dispatcher, Health] = {}
        self._failed: set[Dispatcher] = set()
        self._rebuilding: dict[tuple[str, int], Rebuilding] = {}
        self._in_flight: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        # Threads that wait for a driver, and may do so for ever.
        self._waiting: set[str] = set()
        self._stopped_loading = False

    @property
    def stopped_short(self) -> bool:
        """Whether threads are left, after :meth:`stop`, that may never end."""
        return bool(self._waiting or self._stopped_loading)

    def standing(self, deployment: Deployment) -> Standing:
        """What is thought of ``deployment``."""
        health = self._health.get(deployment.dispatcher)
        return health.standing if health is not None else Standing.HEALTHY

    @property
    def ailments(self) -> Mapping[tuple[str, str], str]:
        """What keeps versions from being ready although they are loaded, by name and version. Any thread may ask."""
        return self._ailments

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Let go of what was counted of ``versions``, of which nothing is there any more."""
        for counts in (self.hung, self.replaced):
            for place in [place for place in counts if place[:2] in versions]:
                del counts[place]

    def start(self) -> None:
        """Called once, on the loop."""
        self._looking = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """Look no more; what is being loaded is let go of. Harmless when called again."""
        self._stopped_loading = bool(self._in_flight)
        if self._making_way is not None:
            self._making_way.stop()
        tasks = [task for task in (self._looking, self._asking, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep_looking(self) -> None:
        while True:
            self._news.clear()
            try:
                await self._look()
            except Exception:
                log.exception("the models' health could not be looked at")
            try:
                async with asyncio.timeout(self._until_next()):
                    await self._news.wait()
            except TimeoutError:
                pass

    def _until_next(self) -> float:
        """Seconds until something has to be looked at, whatever happens."""
        due = (seconds for health in self._health.values() if (seconds := health.until_unready) is not None)
        return min([self._look_seconds, *due])

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
        self._rebuilding = {key: tries for key, tries in self._rebuilding.items() if key in known}
        self._ask_devices([deployment for _, deployment in held])
        self._count(held)
        for model_version, deployment in held:
            health, sight = self._health[deployment.dispatcher], _sight(deployment.dispatcher)
            if health.look(now, sight):
                self._begin(self._try(health, deployment, health.patience(sight)))
            if any(stats.lost or stats.wedged for stats in deployment.dispatcher.device_stats):
                self._rebuild_if_due(model_version, deployment, now)
        ailments = ((model_version, self._health[deployment.dispatcher].ailment) for model_version, deployment in held)
        self._ailments = {(s.name, str(s.version)): ailment.value for s, ailment in ailments if ailment is not None}
        for model_version, deployment in held:
            await self._show(model_version, deployment, self._health[deployment.dispatcher])
        for work in self._inline_runs.look(held) if self._inline_runs is not None else ():
            self._begin(work)
        if self._making_way is not None:
            self._making_way.look(now, [self._plight(model_version, deployment) for model_version, deployment in held])

    def _new(self, deployment: Deployment, now: float) -> Health:
        deployment.dispatcher.on_health_change = self._news.set
        return Health(self._rules, now)

    async def _show(self, model_version: ModelVersion, deployment: Deployment, health: Health) -> None:
        """Have the catalog take requests, or not."""
        tries = self._rebuilding.get((model_version.name, model_version.version))
        said = [tries.said] if tries is not None and tries.said else []
        lost = [f"{c.device} is used no more: {c.lost}" for c in deployment.dispatcher.device_stats if c.lost]
        reason, degraded_reason = ("; ".join([why, *said]) if why else "" for why in (health.unready, "; ".join(lost)))
        if bool(reason) != bool(model_version.unready_reason):
            level = log.error if reason else log.info
            level("model failed" if reason else "model is well again", **_labels(model_version), reason=reason)
        if health.standing is not Standing.FAILED:
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
                place = model_version.name, str(model_version.version), stats.device
                self.hung[place] += hung - hung_before
                self.replaced[place] += replaced - replaced_before

    def _plight(self, model_version: ModelVersion, deployment: Deployment) -> Plight:
        key, stats = (model_version.name, model_version.version), deployment.dispatcher.device_stats
        tries = self._rebuilding.get(key)
        return Plight(
            frozenset(c.device for c in stats),
            frozenset(c.device for c in stats if c.lost),
            tries is not None and tries.exhausted and key not in self._in_flight,
            model_version.effective_state is ModelState.READY,
        )

    async def _try(self, health: Health, deployment: Deployment, seconds: float) -> None:
        ending = Ending.UNANSWERED
        try:
            ending = await canary.send(deployment, seconds)
        finally:
            health.ended(time.monotonic(), ending)
            self._news.set()

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

    def _rebuild_if_due(self, model_version: ModelVersion, deployment: Deployment, now: float) -> None:
        key = (model_version.name, model_version.version)
        tries = self._rebuilding.setdefault(key, Rebuilding(self._rebuild_rules))
        if key not in self._in_flight and tries.due(now):
            self._in_flight.add(key)
            self._begin(self._rebuild(model_version, deployment, tries))

    async def _rebuild(self, model_version: ModelVersion, deployment: Deployment, tries: Rebuilding) -> None:
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
            self._in_flight.discard((model_version.name, model_version.version))
            tries.tried(time.monotonic(), why)
            self._catalog.loads[model_version.name, "failed" if why else "ok"] += 1
            self._news.set()
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


def _sight(dispatcher: Dispatcher) -> Sight:
    stats = dispatcher.device_stats
    return Sight(
        well=sum(c.succeeded for c in stats),
        failed=sum(c.failed for c in stats),
        hung=sum(c.hung for c in stats),
        busy=bool(dispatcher.in_flight or dispatcher.running),
        run=dispatcher.service_time / 1e9,
        gone="; ".join(f"{c.device}: {c.lost}" for c in stats) if all(c.lost for c in stats) else "",
        hangs=any(c.wedged and c.wedged == c.lost for c in stats),
        stalled=dispatcher.stalled,
    )


def _labels(model_version: ModelVersion) -> dict[str, object]:
    return {"model": model_version.name, "version": model_version.version}
