"""The model versions being served: loads them, routes to them, swaps and unloads them.

Everything here runs on the event loop's thread; what blocks (disk, compiling, waiting for
infer requests to end) is sent to a worker thread.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, replace

import structlog

from inferd.catalog.index import IndexEntry, forget, index_of, routing_error, still_serving
from inferd.catalog.retries import LoadRetries, failure_text
from inferd.config.model import ModelConfig, RolloutSettings
from inferd.deployment.deployment import Deployment
from inferd.deployment.loader import CatalogLimits, Loader, log_ready
from inferd.deployment.model_version import ModelVersion, labels_of
from inferd.deployment.settings import cpu_parts, source_of
from inferd.deployment.traffic_split import TrafficSplit
from inferd.dispatcher import Observer
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, LoadFailed, ModelUnavailable, RolloutRejected, UnknownModel
from inferd.lifecycle import ModelState
from inferd.repository.find import ModelEntry, Repository, VersionFile
from inferd.rollout.canary import Canary, canary_rules_of
from inferd.rollout.canary_analysis import CanaryVerdict
from inferd.rollout.output_check import output_mismatch, signature_mismatch

log = structlog.get_logger("inferd.catalog")


@dataclass(frozen=True, slots=True)
class _CanaryRun:
    """A version of ``entry`` that shares the requests with the one before it, until ``stop`` is set. ``model`` is a
    new number, None where it is a changed version of the same."""

    entry: ModelEntry
    stop: asyncio.Event
    split: TrafficSplit
    model_version: ModelVersion | None


class Catalog:
    """Models by name and version; ``loads`` counts attempts to load by model and result, ``rollbacks`` versions that
    were tried on a part of the requests and taken back, by model, version and why; ``busy_ns`` is
    :meth:`Lives.busy_ns`. ``changed`` is awaited after each change of a state; ``tuned`` may replace settings that a
    model leaves open before it is loaded, and runs on a worker thread."""

    def __init__(
        self,
        repository: Repository,
        engine: Engine,
        limits: CatalogLimits,
        observe: Observer,
        changed: Callable[[], Awaitable[None]],
        tuned: Callable[[ModelSource], ModelSource] = lambda source: source,
    ) -> None:
        self._repository = repository
        self._limits = limits
        self._changed = changed
        self._tuned = tuned
        self._models: dict[str, dict[int, ModelVersion]] = {}
        self._broken: dict[str, str] = {}
        # What was read of each model when it was last loaded, or was tried to be.
        self._entries: dict[str, ModelEntry] = {}
        self._routes: dict[tuple[str, str], tuple[ModelVersion, Deployment]] = {}
        self._index: tuple[IndexEntry, ...] = ()
        self._locks: dict[str, asyncio.Lock] = {}
        self._changes: set[asyncio.Task[None]] = set()
        self._loader = Loader(engine, limits, observe)
        self._retries = LoadRetries(lambda name: self._change(self._load(name, force=False)))
        self.busy_ns = self._loader.busy_ns
        self.loads: Counter[tuple[str, str]] = Counter()
        self.rollbacks: Counter[tuple[str, str, str]] = Counter()
        self._cpu_parts: dict[str, int] = {}
        self._canaries: dict[str, _CanaryRun] = {}
        # Versions that were rolled back, and why: not tried again before they change or are asked for.
        self._rejected: dict[tuple[str, int], tuple[tuple[VersionFile, ModelConfig], RolloutRejected]] = {}
        self._ending = False

    # -- routing ------------------------------------------------------------------

    def resolve(self, name: str, version: str) -> tuple[ModelVersion, Deployment]:
        """Who answers the next request; an empty ``version`` means the newest that is ready. While another is tried
        beside it that one gets its share.

        Raises UnknownModel, UnknownVersion or ModelUnavailable.
        """
        route = self.find(name, version)
        if (split := route[0].split) is not None:
            return route[0], split.pick()
        if (
            not version
            and self._canaries
            and (canary := self._canaries.get(name)) is not None
            and canary.model_version is not None
        ):
            deployment = canary.split.pick()
            return (canary.model_version, deployment) if deployment is canary.split.candidate else route
        return route

    def find(self, name: str, version: str) -> tuple[ModelVersion, Deployment]:
        """The version that ``version`` stands for, whatever is tried beside it. Raises as :meth:`resolve`."""
        route = self._routes.get((name, version))
        if route is None:
            raise routing_error(self._models, self._broken, name, version)
        return route

    def versions(self, name: str) -> list[int]:
        """The versions of ``name`` that are known, ascending; raises UnknownModel."""
        if name not in self._models and name not in self._broken:
            raise UnknownModel(name, {**self._models, **self._broken})
        return sorted(self._models.get(name, {}))

    def ready(self, name: str, version: str) -> bool:
        """Whether that version answers; raises UnknownModel or UnknownVersion."""
        try:
            self.find(name, version)
        except ModelUnavailable:
            return False
        return True

    def _reroute(self) -> None:
        routes = {}
        for name, versions in self._models.items():
            for number in sorted(versions):
                model = versions[number]
                if model.effective_state is ModelState.READY and model.deployment is not None:
                    routes[name, str(number)] = (model, model.deployment)
                    if not model.is_canary:
                        routes[name, ""] = (model, model.deployment)
        self._routes = routes

    # -- what is there ------------------------------------------------------------

    def index(self) -> tuple[IndexEntry, ...]:
        """Every version known and every model that can't be read, by name and version. Any thread may ask."""
        return self._index

    async def _publish(self) -> None:
        """Let others see a change of state."""
        self._index = index_of(self._models, self._broken)
        await self._changed()

    def serving(self) -> Iterable[tuple[ModelVersion, Deployment]]:
        """The versions that answer, each once."""
        return [route for (_, version), route in sorted(self._routes.items()) if version]

    def loaded(self) -> Iterable[tuple[ModelVersion, Deployment]]:
        """The versions that may still answer something: those that are live, and those being unloaded."""
        return [
            (s, s.deployment)
            for versions in self._models.values()
            for s in versions.values()
            if s.deployment is not None
        ]

    # -- changing it --------------------------------------------------------------

    async def load_all(self) -> None:
        """Scan the repository and load all it holds, side by side. One that fails is logged and kept as broken."""
        listing = await asyncio.to_thread(self._repository.scan)
        self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        for broken in listing.broken:
            self._mark_broken(broken.name, broken.error)
        await self._publish()
        await asyncio.gather(*(self._load_entry(entry, quietly=True) for entry in listing.models))

    async def load(self, name: str) -> None:
        """Read ``name`` anew and serve what its folder holds now.

        New versions are loaded beside the old; what fails leaves the old one serving. Returns once a version that is
        tried on a part of the requests has them all. Raises UnknownModel, the error that kept it from loading, or
        RolloutRejected where it was rolled back. Goes on to its end when the caller stops waiting.
        """
        await self._shielded(self._load(name))

    async def _load(self, name: str, *, force: bool = True) -> None:
        try:
            entry = await asyncio.to_thread(self._repository.find, name)
        except UnknownModel:
            raise
        except InferdError as error:
            self._mark_broken(name, error)
            await self._publish()
            raise
        if self._limits.split_threads and name not in self._cpu_parts:
            # Newcomers get their part; what the others have been compiled for stays until they are loaded anew.
            listing = await asyncio.to_thread(self._repository.scan)
            self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        await self._load_entry(entry, quietly=not force, force=force)

    async def reload(self, *, thorough: bool = True) -> list[str]:
        """Serve what the repository holds now, and go on with what it held already.

        If ``thorough``, all files of what is served are read, so that one that was changed without a trace is found.

        What is new, has changed or failed before is loaded, changed versions beside the old ones; what is gone is
        unloaded. What a client unloaded stays so until its files change, as does what was rolled back. What fails is
        logged, and leaves what was served serving. Does not wait for versions that are tried on a part of the requests.
        Gives the models that are not served as they are on disk, for that they failed. Raises RepositoryError where the
        repository can't be read; then nothing changes.
        """
        failed: list[str] = []
        await self._shielded(self._reload(failed, thorough=thorough))
        return failed

    async def _reload(self, failed: list[str], *, thorough: bool) -> None:
        listing = await asyncio.to_thread(self._repository.scan)
        self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        for broken in listing.broken:
            self._mark_broken(broken.name, broken.error)
        present = {entry.name for entry in listing.models} | {broken.name for broken in listing.broken}
        gone = [name for name in {*self._models, *self._broken} if name not in present]
        await self._publish()
        await asyncio.gather(
            *(self._load_if_changed(entry, thorough=thorough) for entry in listing.models),
            *(self._remove_model(name) for name in gone),
        )
        failed += [broken.name for broken in listing.broken]
        # What was not to be loaded was no different.
        failed += [entry.name for entry in listing.models if self._differs(entry)]

    async def _load_if_changed(self, entry: ModelEntry, *, thorough: bool) -> None:
        if thorough and not self._differs(entry):
            await self._find_rewritten(entry)
        if self._differs(entry):
            await self._load_or_start_canary(entry)

    async def _load_or_start_canary(self, entry: ModelEntry) -> None:
        """Return once ``entry`` is loaded, or a version of it has begun to share the requests."""
        canary_started = asyncio.Event()
        loading = self._change(self._load_entry(entry, quietly=True, force=False, canary_started=canary_started))
        sharing = asyncio.create_task(canary_started.wait())
        await asyncio.wait({loading, sharing}, return_when=asyncio.FIRST_COMPLETED)
        sharing.cancel()
        if loading.done():
            loading.result()

    def _differs(self, entry: ModelEntry) -> bool:
        """Whether there is something to load: other files or settings than before, or a version that failed."""
        canary = self._canaries.get(entry.name)
        if canary is not None and canary.entry == entry:
            return False
        model = self._models.get(entry.name, {}).values()
        failed = any(s.desired and s.effective_state is ModelState.UNAVAILABLE for s in model)
        return failed or entry.name in self._broken or self._entries.get(entry.name) != entry

    async def _find_rewritten(self, entry: ModelEntry) -> None:
        """Count what answers for ``entry`` as changed where its files look the same and hold something else."""
        for version in entry.versions if entry.name not in self._canaries else ():
            model = self._models.get(entry.name, {}).get(version.version)
            if model is None or model.deployment is None or model.origin is None or model.origin[0] != version:
                continue  # not served, or about to be loaded anyhow
            if not await self._loader.holds(model.deployment, source_of(entry, version)):
                model.origin = None
                self._entries.pop(entry.name, None)

    async def _remove_model(self, name: str) -> None:
        """``name`` is in the repository no more."""
        await self._unload(name)
        async with self._lock(name):
            for kept in (self._models, self._broken, self._entries):
                kept.pop(name, None)
        await self._publish()

    async def unload(self, name: str) -> None:
        """Stop serving all versions of ``name``: what was accepted is answered first. Raises UnknownModel.

        Goes on to its end when the caller stops waiting.
        """
        self.versions(name)
        await self._shielded(self._unload(name))

    async def _unload(self, name: str) -> None:
        self._retries.forget(name)
        self._stop_canaries(name)
        async with self._lock(name):
            ready = [s for s in self._models.get(name, {}).values() if s.state is ModelState.READY]
            await self._retire(ready, "unloaded")

    async def roll_out(
        self,
        model: ModelVersion,
        config: ModelConfig,
        steer: Callable[[TrafficSplit], Awaitable[bool]],
        *,
        inline: bool | None = None,
    ) -> bool:
        """Load ``model`` as ``config`` has it beside what answers now, and have ``steer`` try it; ``inline`` is as
        :class:`ModelSource` has it.

        What ``steer`` returns says which of the two goes on; the other answers what it has
        taken and is freed. Also when ``steer`` raises or is cancelled: then the old one stays.
        Raises what loading raises, and ModelUnavailable where the version does not answer.
        """
        async with self._lock(model.name):
            incumbent = model.deployment
            if model.state is not ModelState.READY or incumbent is None:
                raise ModelUnavailable(model.name, model.state.value.lower())
            candidate = await self._loader.load(replace(incumbent.source, config=config, inline=inline))
            model.split = TrafficSplit(incumbent, candidate)
            promoted = False
            try:
                promoted = await steer(model.split)
            finally:
                model.split = None
                if promoted:
                    model.deployment, model.unready_reason, model.degraded_reason = candidate, "", ""
                    self._reroute()
                # Whoever gives up meanwhile must not leave a configuration behind that nobody frees.
                await asyncio.shield(self._release(incumbent if promoted else candidate))
            if promoted:
                log_ready(model)
            await self._publish()
            return promoted

    async def _release(self, gone: Deployment) -> None:
        await self._publish()
        await self._loader.finish(gone)

    async def set_health(
        self, model: ModelVersion, deployment: Deployment, unready_reason: str, degraded_reason: str = ""
    ) -> None:
        """Take no requests for ``model`` because of ``why``, or take them again if that is empty; say what it is
        ``degraded_reason`` by.

        Changes nothing where ``deployment`` is not what it is served by any more.
        """
        if model.deployment is deployment and (model.unready_reason, model.degraded_reason) != (
            unready_reason,
            degraded_reason,
        ):
            model.unready_reason, model.degraded_reason = unready_reason, degraded_reason
            self._reroute()
            await self._publish()

    def unfreed(self, name: str | None = None) -> int:
        """How many versions of ``name``, or of all, were let go of and hold memory because a run does not end."""
        return self._loader.unfreed(name)

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Let go of the counts of ``versions``, of which nothing is there any more."""
        self._loader.forget(versions)
        forget(versions, {model.name for model, _ in self.loaded()}, self.loads, self.rollbacks)

    async def drain(self, seconds: float) -> bool:
        """Wait until every accepted request has ended; False when ``seconds`` were not enough."""
        self._ending = True
        self._retries.close()
        self._stop_canaries(*self._canaries)
        busy = {deployment.dispatcher for _, deployment in self.loaded()}
        busy |= {canary.split.candidate.dispatcher for canary in self._canaries.values()}
        waits = [asyncio.ensure_future(dispatcher.drained()) for dispatcher in busy]
        if not waits:
            return True
        _, pending = await asyncio.wait(waits, timeout=seconds)
        for wait in pending:
            wait.cancel()
        return not pending

    async def close(self) -> None:
        """Answer what is left and free every infer request. Harmless when called again."""
        self._ending = True
        self._retries.close()
        self._stop_canaries(*self._canaries)
        if self._changes:
            await asyncio.wait(self._changes)
        held, self._routes = list(self.loaded()), {}
        await asyncio.gather(*(self._loader.free(deployment) for _, deployment in held))

    async def _shielded(self, change: Coroutine[None, None, None]) -> None:
        """A client that hangs up must not leave a version half unloaded."""
        await asyncio.shield(self._change(change))

    def _change(self, change: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._change_ended)
        return task

    def _change_ended(self, task: asyncio.Task[None]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # seen: it was logged where it arose, whether or not anyone still waits

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _mark_broken(self, name: str, error: InferdError) -> None:
        self._broken[name] = str(error)
        self.loads[name, "failed"] += 1
        for model in self._models.get(name, {}).values():
            if model.state is ModelState.READY:
                model.reason = f"what is on disk now is not served: {error}"
        log.error("model can't be served", model=name, problem=str(error), **still_serving(self._routes, name))

    def _stop_canaries(self, *names: str) -> None:
        """What is to change may not have to wait for what was tried before."""
        for name in names:
            if (canary := self._canaries.get(name)) is not None:
                canary.stop.set()

    async def _load_entry(
        self, entry: ModelEntry, *, quietly: bool, force: bool = True, canary_started: asyncio.Event | None = None
    ) -> None:
        """Load the versions of ``entry``; also those that are as they were, if ``force``. ``canary_started`` is set
        once one shares the requests with the one before it."""
        if (canary := self._canaries.get(entry.name)) is not None:
            if canary.entry == entry:
                # Asked for again: what comes of it is the answer to both.
                force = False
            else:
                canary.stop.set()
        async with self._lock(entry.name):
            self._broken.pop(entry.name, None)
            self._entries[entry.name] = entry
            failures = [
                f
                for v in entry.versions
                if (f := await self._load_version(entry, v, force, canary_started)) is not None
            ]
            self._retries.ended(entry.name, failures)
            if not all(isinstance(failure, RolloutRejected) for failure in failures):
                self._entries.pop(entry.name, None)
            picked = {v.version for v in entry.versions}
            # Where one failed, what it was to follow stays: better an old version than none.
            known = self._models.get(entry.name, {})
            gone = [s for n, s in known.items() if n not in picked] if not failures else []
            await self._retire(
                [s for s in gone if s.state is ModelState.READY], "no longer picked by the version policy"
            )
            for model in gone:
                del self._models[entry.name][model.version]
        await self._publish()
        if failures and not quietly:
            raise failures[0]

    async def _load_version(
        self, entry: ModelEntry, version: VersionFile, force: bool, canary_started: asyncio.Event | None
    ) -> InferdError | None:
        """Load beside what serves now, then switch over. Returns what went wrong."""
        versions = self._models.setdefault(entry.name, {})
        key, old = (entry.name, version.version), versions.get(version.version)
        model = ModelVersion(*key)
        # How it is brought into service is nothing that it has to be loaded anew for.
        model.origin = origin = (version, entry.config.model_copy(update={"rollout": RolloutSettings()}))
        before = self._predecessor(model, old)
        if not force and before is not None:
            if before is old and old.origin == origin:
                old.reason = ""
                return None
            if (rejected := self._rejected.get(key)) is not None and rejected[0] == (version, entry.config):
                return rejected[1]
            # Written or moved, it may hold the same as before.
            rewritten = before is old and old.origin is not None and old.origin[1] == origin[1]
            if rewritten and await self._loader.holds(before.deployment, source_of(entry, version)):
                before.origin, before.reason = origin, ""
                return None
        self._rejected.pop(key, None)
        if old is None or old.state is not ModelState.READY:
            versions[version.version] = model
            await self._publish()
        candidate: Deployment | None = None
        try:
            source = source_of(entry, version, self._cpu_parts.get(entry.name, 0))
            candidate = await self._loader.load(source, self._tuned)
            if before is not None:
                await self._check_candidate(before, model, candidate)
        except InferdError as error:
            return await self._load_failed(model, old, error, candidate)
        except Exception:
            # A fault of ours or of a plugin's: this version is lost, the others must not be.
            log.exception("model could not be loaded", model=entry.name, version=version.version)
            return await self._load_failed(model, old, LoadFailed(*key, "internal error"), candidate)
        self.loads[entry.name, "ok"] += 1
        if before is not None and before.origin != origin and self._needs_canary(before, candidate):
            refusal = await self._run_canary(entry, before, model, candidate, canary_started)
            if refusal is not None:
                return refusal
        last = before.deployment if before is not None else None
        if last is not None and last.signature.inputs == candidate.signature.inputs:
            # The next one is asked them too, however soon it comes.
            candidate.dispatcher.samples.extend(last.dispatcher.samples)
        model.deployment, model.reason = candidate, ""
        if model.state is ModelState.LOADING:
            model.move(ModelState.READY)
        versions[version.version] = model
        self._reroute()
        log_ready(model)
        await self._publish()
        if old is not None and old.state is ModelState.READY:
            await self._retire([old], "replaced")
        return None

    def _predecessor(self, model: ModelVersion, old: ModelVersion | None) -> ModelVersion | None:
        """Whose requests ``model`` is about to get, None where nobody answers them."""
        if old is not None and old.effective_state is ModelState.READY:
            return old
        route = self._routes.get((model.name, ""))
        return route[0] if route is not None and route[0].version < model.version else None

    async def _check_candidate(self, before: ModelVersion, model: ModelVersion, candidate: Deployment) -> None:
        """Raises LoadFailed where ``candidate`` can't take the place of ``before``."""
        incumbent, rollout = before.deployment, candidate.config.rollout
        if incumbent is None:
            return
        if rollout.check == "outputs" and (why := await output_mismatch(incumbent, candidate, rollout.tolerance)):
            raise LoadFailed(model.name, model.version, f"it is not fit to take over: {why}")
        if rollout.canary_share and (incumbent.signature.in_sequences or candidate.signature.in_sequences):
            log.warning("no canary: live sequences can't be shared; it takes over at once", **labels_of(model))
        if self._needs_canary(before, candidate) and (
            why := signature_mismatch(incumbent.signature, candidate.signature)
        ):
            raise LoadFailed(
                model.name,
                model.version,
                f"it can't share requests with version {before.version}: {why}; with rollout.canary_share = 0 it takes "
                "over at once",
            )

    def _needs_canary(self, before: ModelVersion, candidate: Deployment) -> bool:
        """Whether ``candidate`` is to be tried on a part of the requests first."""
        if before.deployment is None or not candidate.config.rollout.canary_share:
            return False
        if before.deployment.signature.in_sequences or candidate.signature.in_sequences:
            return False
        return before.effective_state is ModelState.READY

    async def _run_canary(
        self,
        entry: ModelEntry,
        before: ModelVersion,
        model: ModelVersion,
        candidate: Deployment,
        canary_started: asyncio.Event | None,
    ) -> InferdError | None:
        """Share the requests between ``before`` and ``model``. Returns why it was rolled back, None where it is to
        have them all."""
        incumbent, rules, same = before.deployment, canary_rules_of(candidate.config), before.version == model.version
        if incumbent is None:
            return None
        canary = _CanaryRun(entry, asyncio.Event(), TrafficSplit(incumbent, candidate), None if same else model)
        failure_text = f"gets {rules.share:.3g} of the requests for {rules.seconds:g} s or longer, then takes over"
        self._canaries[model.name] = canary
        if self._ending:
            canary.stop.set()
        if same:
            before.split, before.reason = canary.split, f"canary: what is on disk now {failure_text}"
        else:
            model.deployment, model.is_canary = candidate, True
            model.move(ModelState.READY, f"canary: {failure_text} from version {before.version}")
            self._reroute()
        log.info("canary begins", **labels_of(model), beside=before.version, share=rules.share)
        await self._publish()
        if canary_started is not None:
            canary_started.set()
        verdict, why = CanaryVerdict.FAILED, "internal error"
        try:
            verdict, why = await Canary(
                rules, canary.split, canary.stop, lambda: (model.unready_reason, before.unready_reason)
            ).run()
        except Exception:
            log.exception("canary could not be judged", **labels_of(model))
        finally:
            del self._canaries[model.name]
            before.split, model.is_canary = None, False
        if verdict is CanaryVerdict.PROMOTED:
            log.info("canary promoted", **labels_of(model), why=why)
            return None
        error = RolloutRejected(model.name, verdict.value, why)
        if model.origin is not None and verdict is not CanaryVerdict.STOPPED:
            self._rejected[model.name, model.version] = (model.origin[0], entry.config), error
        await self._roll_back(before, model, candidate, error)
        return error

    async def _roll_back(
        self, before: ModelVersion, model: ModelVersion, candidate: Deployment, error: RolloutRejected
    ) -> None:
        """Go on with ``before`` alone, and free ``candidate`` once it has answered what it took."""
        stopped = error.decision == CanaryVerdict.STOPPED.value
        self.rollbacks[model.name, str(model.version), error.decision] += 1
        tell = log.info if stopped else log.warning
        tell(
            "canary rolled back",
            **labels_of(model),
            beside=before.version,
            reason=error.decision,
            why=error.why,
        )
        if before.version == model.version:
            before.reason = f"what is on disk now is not served: {error}"
            await self._publish()
            await self._loader.finish(candidate)
        else:
            await self._retire([model], f"rolled back: {error.why}")
            # It is missed, unlike one that somebody unloaded.
            model.desired = not stopped
            await self._publish()

    async def _load_failed(
        self, model: ModelVersion, old: ModelVersion | None, error: InferdError, candidate: Deployment | None
    ) -> InferdError:
        if candidate is not None:
            await self._loader.free(candidate)
        self.loads[model.name, "failed"] += 1
        model.move(ModelState.UNAVAILABLE, failure_text(error))
        if old is not None and old.state is ModelState.READY:
            old.reason = f"what is on disk now is not served: {failure_text(error)}"
        log.error(
            "model can't be served", **labels_of(model), problem=str(error), **still_serving(self._routes, model.name)
        )
        await self._publish()
        return error

    async def _retire(self, gone: Iterable[ModelVersion], reason: str) -> None:
        """Take versions out of the routes, answer what they accepted, free their memory."""
        for model in gone:
            deployment = model.deployment
            model.move(ModelState.UNLOADING)
            self._reroute()
            await self._publish()
            if deployment is not None:
                await self._loader.finish(deployment)
            model.deployment, model.unready_reason, model.degraded_reason, model.desired = None, "", "", False
            model.move(ModelState.UNAVAILABLE, reason)
            await self._publish()
            log.info("model unloaded", model=model.name, version=model.version, reason=reason)
