"""The model versions being served: loads them, routes to them, swaps and unloads them.

Everything here runs on the event loop's thread; what blocks (disk, compiling, waiting for
infer requests to end) is sent to a worker thread.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine

import structlog

from inferd.catalog.index import forget, still_serving
from inferd.catalog.routes import Routes
from inferd.config.model import ModelConfig, RolloutSettings
from inferd.deployment.deployment import Deployment
from inferd.deployment.load_retries import LoadRetries, failure_text
from inferd.deployment.loader import CatalogLimits, Loader, log_ready
from inferd.deployment.model_version import ModelVersion, labels_of
from inferd.deployment.settings import cpu_parts, source_of
from inferd.dispatcher import Observer
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, LoadFailed, RolloutRejected, UnknownModel
from inferd.lifecycle import ModelState, Retirement
from inferd.repository.find import ModelEntry, Repository, VersionFile
from inferd.rollout.exchange import Exchange, Steer, needs_canary

log = structlog.get_logger("inferd.catalog")


class Catalog(Routes):
    """Loads, swaps and unloads the versions of its :class:`Routes`.

    ``loads`` counts load attempts by model and result; ``rollbacks`` counts canaries that were rolled back, by model,
    version and reason; ``busy_ns`` is :meth:`Loader.busy_ns`. ``tuned`` may fill in settings that a model leaves open
    before it is loaded; it runs on a worker thread."""

    def __init__(
        self,
        repository: Repository,
        engine: Engine,
        limits: CatalogLimits,
        *,
        observe: Observer,
        changed: Callable[[], Awaitable[None]],
        tuned: Callable[[ModelSource], ModelSource] = lambda source: source,
    ) -> None:
        super().__init__(changed)
        self._repository = repository
        self._limits = limits
        self._tuned = tuned
        # What was read of each model at its last load attempt.
        self._entries: dict[str, ModelEntry] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._changes: set[asyncio.Task[None]] = set()
        self._loader = Loader(engine, limits, observe)
        self._retries = LoadRetries(lambda name: self._change(self._load(name, force=False)))
        self._exchange = Exchange(self._loader, self)
        self.busy_ns = self._loader.busy_ns
        self.loads: Counter[tuple[str, str]] = Counter()
        self.rollbacks = self._exchange.rollbacks
        self._cpu_parts: dict[str, int] = {}

    # -- changing it --------------------------------------------------------------

    async def load_all(self) -> None:
        """Scan the repository and load its models, several at a time; one that fails is logged and kept as broken."""
        listing = await asyncio.to_thread(self._repository.scan)
        self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        for broken in listing.broken:
            self._mark_broken(broken.name, broken.error)
        await self.publish()
        await asyncio.gather(*(self._load_entry(entry, quietly=True) for entry in listing.models))

    async def load(self, name: str) -> None:
        """Read ``name`` again and serve what its folder holds now.

        New versions are loaded next to the old; if one fails, the old one keeps serving. Returns once a canary gets all
        requests. Raises UnknownModel, the error that kept it from loading, or RolloutRejected if it was rolled back.
        Completes even if the caller stops waiting.
        """
        await self._shielded(self._load(name))

    async def _load(self, name: str, *, force: bool = True) -> None:
        try:
            entry = await asyncio.to_thread(self._repository.find, name)
        except UnknownModel:
            raise
        except InferdError as error:
            self._mark_broken(name, error)
            await self.publish()
            raise
        if self._limits.split_threads and name not in self._cpu_parts:
            # New models get their share; the others keep the threads they were compiled for until their next load.
            listing = await asyncio.to_thread(self._repository.scan)
            self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        await self._load_entry(entry, quietly=not force, force=force)

    async def reload(self, *, thorough: bool = True) -> list[str]:
        """Serve what the repository holds now, and keep serving what has not changed.

        If ``thorough``, read all files of served versions, to find changes that left size and time as they were.

        Loads what is new, has changed or failed before (changed versions next to the old ones), and unloads what is
        gone. A version that a client unloaded or that was rolled back stays so until its files change. A failure is
        logged, and the old version keeps serving. Does not wait for canaries. Returns the models that failed, which
        are not served as they are on disk. Raises RepositoryError, and changes nothing, if it is unreadable.
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
        await self.publish()
        await asyncio.gather(
            *(self._load_if_changed(entry, thorough=thorough) for entry in listing.models),
            *(self._remove_model(name) for name in gone),
        )
        failed += [broken.name for broken in listing.broken]
        # Models that needed no load are unchanged.
        failed += [entry.name for entry in listing.models if self._differs(entry)]

    async def _load_if_changed(self, entry: ModelEntry, *, thorough: bool) -> None:
        if thorough and not self._differs(entry):
            await self._find_rewritten(entry)
        if self._differs(entry):
            await self._load_or_start_canary(entry)

    async def _load_or_start_canary(self, entry: ModelEntry) -> None:
        """Return once ``entry`` is loaded, or one of its versions has started as a canary."""
        canary_started = asyncio.Event()
        loading = self._change(self._load_entry(entry, quietly=True, force=False, canary_started=canary_started))
        sharing = asyncio.create_task(canary_started.wait())
        await asyncio.wait({loading, sharing}, return_when=asyncio.FIRST_COMPLETED)
        sharing.cancel()
        if loading.done():
            loading.result()

    def _differs(self, entry: ModelEntry) -> bool:
        """Whether there is something to load: changed files or settings, or a version that failed."""
        if self._exchange.trying(entry.name) == entry:
            return False
        model = self._models.get(entry.name, {}).values()
        failed = any(s.desired and s.effective_state is ModelState.UNAVAILABLE for s in model)
        return failed or entry.name in self._broken or self._entries.get(entry.name) != entry

    async def _find_rewritten(self, entry: ModelEntry) -> None:
        """Mark versions of ``entry`` as changed whose files look the same but have other content."""
        for version in entry.versions if self._exchange.trying(entry.name) is None else ():
            model = self._models.get(entry.name, {}).get(version.version)
            if model is None or model.deployment is None or model.origin is None or model.origin[0] != version:
                continue  # not served, or about to be loaded anyhow
            if not await self._loader.holds(model.deployment, source_of(entry, version)):
                model.origin = None
                self._entries.pop(entry.name, None)

    async def _remove_model(self, name: str) -> None:
        """``name`` is no longer in the repository."""
        await self._unload(name)
        async with self._lock(name):
            for kept in (self._models, self._broken, self._entries):
                kept.pop(name, None)
        await self.publish()

    async def unload(self, name: str) -> None:
        """Stop serving all versions of ``name`` once their accepted requests are answered. Raises UnknownModel.

        Completes even if the caller stops waiting.
        """
        self.versions(name)
        await self._shielded(self._unload(name))

    async def _unload(self, name: str) -> None:
        self._retries.forget(name)
        self._exchange.stop(name)
        async with self._lock(name):
            ready = [s for s in self._models.get(name, {}).values() if s.state is ModelState.READY]
            await self._exchange.retire(ready, Retirement.UNLOADED)

    async def roll_out(
        self,
        model: ModelVersion,
        config: ModelConfig,
        steer: Steer,
        *,
        inline: bool | None = None,
    ) -> bool:
        """Load ``model`` with ``config`` next to the deployment that serves, and let ``steer`` try it; ``inline`` is
        as in :class:`ModelSource`.

        ``steer`` returns which of the two goes on; the other answers its accepted requests and is
        freed. If ``steer`` raises or is cancelled, the old one stays. Raises what loading raises,
        and ModelUnavailable if the version does not answer.
        """
        async with self._lock(model.name):
            return await self._exchange.exchange(model, config, steer, inline=inline)

    def unfreed(self, name: str | None = None) -> int:
        """How many retired versions of ``name``, or of all models, still hold memory because a run hangs."""
        return self._loader.unfreed(name)

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Drop the counts of ``versions``, which are gone."""
        self._loader.forget(versions)
        forget(versions, {model.name for model, _ in self.loaded()}, self.loads, self.rollbacks)

    async def drain(self, seconds: float) -> bool:
        """Wait until every accepted request has ended; False when ``seconds`` were not enough."""
        self._retries.close()
        self._exchange.end()
        busy = {deployment.dispatcher for _, deployment in self.loaded()}
        busy |= {candidate.dispatcher for candidate in self._exchange.candidates()}
        waits = [asyncio.ensure_future(dispatcher.drained()) for dispatcher in busy]
        if not waits:
            return True
        _, pending = await asyncio.wait(waits, timeout=seconds)
        for wait in pending:
            wait.cancel()
        return not pending

    async def close(self, seconds: float | None = None) -> bool:
        """Answer the remaining requests and free every infer request, after loads and unloads under way have ended or,
        if given, ``seconds`` have passed; False if one goes on. Harmless when called again."""
        self._retries.close()
        self._exchange.end()
        late: set[asyncio.Task[None]] = set()
        if self._changes:
            _, late = await asyncio.wait(self._changes, timeout=seconds)
        held, self._routes = list(self.loaded()), {}
        await asyncio.gather(*(self._loader.free(deployment) for _, deployment in held))
        return not late

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
                model.reason = f"version on disk not served: {error}"
        log.error("model load failed", model=name, problem=str(error), **still_serving(self._routes, name))

    async def _load_entry(
        self, entry: ModelEntry, *, quietly: bool, force: bool = True, canary_started: asyncio.Event | None = None
    ) -> None:
        """Load the versions of ``entry``; also those that are as they were, if ``force``. ``canary_started`` is set
        once one shares the requests with the one before it."""
        if (trying := self._exchange.trying(entry.name)) == entry:
            # Requested again: one result answers both calls.
            force = False
        elif trying is not None:
            self._exchange.stop(entry.name)
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
            await self._exchange.retire([s for s in gone if s.state is ModelState.READY], Retirement.UNPICKED)
            for model in gone:
                del self._models[entry.name][model.version]
        await self.publish()
        if failures and not quietly:
            raise failures[0]

    async def _load_version(
        self, entry: ModelEntry, version: VersionFile, force: bool, canary_started: asyncio.Event | None
    ) -> InferdError | None:
        """Load next to what serves now, then switch over. Returns what went wrong."""
        versions = self._models.setdefault(entry.name, {})
        key, old = (entry.name, version.version), versions.get(version.version)
        model = ModelVersion(*key)
        # Changed rollout settings alone are no reason to load it again.
        model.origin = origin = (version, entry.config.model_copy(update={"rollout": RolloutSettings()}))
        before = self.predecessor(model, old)
        if not force and before is not None:
            if before is old and old.origin == origin:
                old.reason = ""
                return None
            if (rejected := self._exchange.rejected(entry, version)) is not None:
                return rejected
            # A file that was written or moved may have the same content.
            rewritten = before is old and old.origin is not None and old.origin[1] == origin[1]
            if rewritten and await self._loader.holds(before.deployment, source_of(entry, version)):
                before.origin, before.reason = origin, ""
                return None
        self._exchange.allow(*key)
        if old is None or old.state is not ModelState.READY:
            versions[version.version] = model
            await self.publish()
        candidate: Deployment | None = None
        try:
            source = source_of(entry, version, self._cpu_parts.get(entry.name, 0))
            candidate = await self._loader.load(source, self._tuned)
            if before is not None:
                await self._exchange.check(before, model, candidate)
        except InferdError as error:
            return await self._load_failed(model, old, error, candidate)
        except Exception:
            # A bug of inferd or of a plugin: it may cost this version, but no other.
            log.exception("model load raised an unexpected exception", model=entry.name, version=version.version)
            return await self._load_failed(model, old, LoadFailed(*key, "internal error"), candidate)
        self.loads[entry.name, "ok"] += 1
        if before is not None and before.origin != origin and needs_canary(before, candidate):
            refusal = await self._exchange.run_canary(entry, before, model, candidate, canary_started)
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
        self.reroute()
        log_ready(model)
        await self.publish()
        if old is not None and old.state is ModelState.READY:
            await self._exchange.retire([old], Retirement.REPLACED)
        return None

    async def _load_failed(
        self, model: ModelVersion, old: ModelVersion | None, error: InferdError, candidate: Deployment | None
    ) -> InferdError:
        if candidate is not None:
            await self._loader.free(candidate)
        self.loads[model.name, "failed"] += 1
        model.move(ModelState.UNAVAILABLE, failure_text(error))
        if old is not None and old.state is ModelState.READY:
            old.reason = f"version on disk not served: {failure_text(error)}"
        log.error(
            "model load failed", **labels_of(model), problem=str(error), **still_serving(self._routes, model.name)
        )
        await self.publish()
        return error
