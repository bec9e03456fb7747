"""The model versions being served: loads them, routes to them, swaps and unloads them.

Everything here runs on the event loop's thread; what blocks (disk, compiling, waiting for
infer requests to end) is sent to a worker thread.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, replace

import structlog

from inferd.catalog.canary import Canary, rules_under
from inferd.catalog.index import forget, index_of, still_serving, unanswered
from inferd.catalog.judgement import Verdict
from inferd.catalog.lives import CatalogLimits, Lives, announce
from inferd.catalog.outputs import misfit, objection
from inferd.catalog.retries import Retries, said
from inferd.catalog.rules import cpu_parts, source_of
from inferd.catalog.served import Beside, IndexEntry, Live, Served, labels_of
from inferd.config.model import ModelConfig, Rollout
from inferd.dispatcher import Observer
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, LoadFailed, ModelUnavailable, NotAdopted, UnknownModel
from inferd.lifecycle import ModelState
from inferd.repository import ModelEntry, Repository, VersionFile

log = structlog.get_logger("inferd.catalog")


@dataclass(frozen=True, slots=True)
class _Trial:
    """A version of ``entry`` that shares the requests with the one before it, until ``stop`` is set. ``served`` is a
    new number, None where it is a changed version of the same."""

    entry: ModelEntry
    stop: asyncio.Event
    beside: Beside
    served: Served | None


class Catalog:
    """Models by name and version; ``loads`` counts attempts to load by model and result, ``rollbacks`` versions that
    were tried on a part of the requests and taken back, by model, version and why; ``worked`` is :meth:`Lives.worked`.
    ``changed`` is awaited after each change of a state; ``tuned`` may replace settings that a model leaves open before
    it is loaded, and runs on a worker thread."""

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
        self._models: dict[str, dict[int, Served]] = {}
        self._broken: dict[str, str] = {}
        # What was read of each model when it was last loaded, or was tried to be.
        self._entries: dict[str, ModelEntry] = {}
        self._routes: dict[tuple[str, str], tuple[Served, Live]] = {}
        self._index: tuple[IndexEntry, ...] = ()
        self._locks: dict[str, asyncio.Lock] = {}
        self._changes: set[asyncio.Task[None]] = set()
        self._lives = Lives(engine, limits, observe)
        self._retries = Retries(lambda name: self._change(self._load(name, anew=False)))
        self.worked = self._lives.worked
        self.loads: Counter[tuple[str, str]] = Counter()
        self.rollbacks: Counter[tuple[str, str, str]] = Counter()
        self._cpu_parts: dict[str, int] = {}
        self._trials: dict[str, _Trial] = {}
        # Versions that were rolled back, and why: not tried again before they change or are asked for.
        self._turned_away: dict[tuple[str, int], tuple[tuple[VersionFile, ModelConfig], NotAdopted]] = {}
        self._ending = False

    # -- routing ------------------------------------------------------------------

    def resolve(self, name: str, version: str) -> tuple[Served, Live]:
        """Who answers the next request; an empty ``version`` means the newest that is ready. While another is tried
        beside it that one gets its share.

        Raises UnknownModel, UnknownVersion or ModelUnavailable.
        """
        route = self.find(name, version)
        if (beside := route[0].beside) is not None:
            return route[0], beside.pick()
        if not version and self._trials and (trial := self._trials.get(name)) is not None and trial.served is not None:
            live = trial.beside.pick()
            return (trial.served, live) if live is trial.beside.candidate else route
        return route

    def find(self, name: str, version: str) -> tuple[Served, Live]:
        """The version that ``version`` stands for, whatever is tried beside it. Raises as :meth:`resolve`."""
        route = self._routes.get((name, version))
        if route is None:
            raise unanswered(self._models, self._broken, name, version)
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
                served = versions[number]
                if served.shown is ModelState.READY and served.live is not None:
                    routes[name, str(number)] = (served, served.live)
                    if not served.on_trial:
                        routes[name, ""] = (served, served.live)
        self._routes = routes

    # -- what is there ------------------------------------------------------------

    def index(self) -> tuple[IndexEntry, ...]:
        """Every version known and every model that can't be read, by name and version. Any thread may ask."""
        return self._index

    async def _publish(self) -> None:
        """Let others see a change of state."""
        self._index = index_of(self._models, self._broken)
        await self._changed()

    def live(self) -> Iterable[tuple[Served, Live]]:
        """The versions that answer, each once."""
        return [route for (_, version), route in sorted(self._routes.items()) if version]

    def holding(self) -> Iterable[tuple[Served, Live]]:
        """The versions that may still answer something: those that are live, and those being unloaded."""
        return [(s, s.live) for versions in self._models.values() for s in versions.values() if s.live is not None]

    # -- changing it --------------------------------------------------------------

    async def load_all(self) -> None:
        """Scan the repository and load all it holds, side by side. One that fails is logged and kept as broken."""
        listing = await asyncio.to_thread(self._repository.scan)
        self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        for broken in listing.broken:
            self._break(broken.name, broken.error)
        await self._publish()
        await asyncio.gather(*(self._load_entry(entry, quietly=True) for entry in listing.models))

    async def load(self, name: str) -> None:
        """Read ``name`` anew and serve what its folder holds now.

        New versions are loaded beside the old; what fails leaves the old one serving. Returns once a version that is
        tried on a part of the requests has them all. Raises UnknownModel, the error that kept it from loading, or
        NotAdopted where it was rolled back. Goes on to its end when the caller stops waiting.
        """
        await self._to_the_end(self._load(name))

    async def _load(self, name: str, *, anew: bool = True) -> None:
        try:
            entry = await asyncio.to_thread(self._repository.find, name)
        except UnknownModel:
            raise
        except InferdError as error:
            self._break(name, error)
            await self._publish()
            raise
        if self._limits.split_threads and name not in self._cpu_parts:
            # Newcomers get their part; what the others have been compiled for stays until they are loaded anew.
            listing = await asyncio.to_thread(self._repository.scan)
            self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        await self._load_entry(entry, quietly=not anew, anew=anew)

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
        await self._to_the_end(self._reload(failed, thorough=thorough))
        return failed

    async def _reload(self, failed: list[str], *, thorough: bool) -> None:
        listing = await asyncio.to_thread(self._repository.scan)
        self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        for broken in listing.broken:
            self._break(broken.name, broken.error)
        present = {entry.name for entry in listing.models} | {broken.name for broken in listing.broken}
        gone = [name for name in {*self._models, *self._broken} if name not in present]
        await self._publish()
        await asyncio.gather(
            *(self._load_if_changed(entry, thorough=thorough) for entry in listing.models),
            *(self._vanish(name) for name in gone),
        )
        failed += [broken.name for broken in listing.broken]
        # What was not to be loaded was no different.
        failed += [entry.name for entry in listing.models if self._differs(entry)]

    async def _load_if_changed(self, entry: ModelEntry, *, thorough: bool) -> None:
        if thorough and not self._differs(entry):
            await self._find_rewritten(entry)
        if self._differs(entry):
            await self._load_or_try(entry)

    async def _load_or_try(self, entry: ModelEntry) -> None:
        """Return once ``entry`` is loaded, or a version of it has begun to share the requests."""
        begun = asyncio.Event()
        loading = self._change(self._load_entry(entry, quietly=True, anew=False, begun=begun))
        sharing = asyncio.create_task(begun.wait())
        await asyncio.wait({loading, sharing}, return_when=asyncio.FIRST_COMPLETED)
        sharing.cancel()
        if loading.done():
            loading.result()

    def _differs(self, entry: ModelEntry) -> bool:
        """Whether there is something to load: other files or settings than before, or a version that failed."""
        trial = self._trials.get(entry.name)
        if trial is not None and trial.entry == entry:
            return False
        served = self._models.get(entry.name, {}).values()
        failed = any(s.wanted and s.shown is ModelState.UNAVAILABLE for s in served)
        return failed or entry.name in self._broken or self._entries.get(entry.name) != entry

    async def _find_rewritten(self, entry: ModelEntry) -> None:
        """Count what answers for ``entry`` as changed where its files look the same and hold something else."""
        for version in entry.versions if entry.name not in self._trials else ():
            served = self._models.get(entry.name, {}).get(version.version)
            if served is None or served.live is None or served.origin is None or served.origin[0] != version:
                continue  # not served, or about to be loaded anyhow
            if not await self._lives.holds(served.live, source_of(entry, version)):
                served.origin = None
                self._entries.pop(entry.name, None)

    async def _vanish(self, name: str) -> None:
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
        await self._to_the_end(self._unload(name))

    async def _unload(self, name: str) -> None:
        self._retries.forget(name)
        self._stop_trials(name)
        async with self._lock(name):
            ready = [s for s in self._models.get(name, {}).values() if s.state is ModelState.READY]
            await self._retire(ready, "unloaded")

    async def roll_out(
        self,
        served: Served,
        config: ModelConfig,
        steer: Callable[[Beside], Awaitable[bool]],
        *,
        inline: bool | None = None,
    ) -> bool:
        """Load ``served`` as ``config`` has it beside what answers now, and have ``steer`` try it; ``inline`` is as
        :class:`ModelSource` has it.

        What ``steer`` returns says which of the two goes on; the other answers what it has
        taken and is freed. Also when ``steer`` raises or is cancelled: then the old one stays.
        Raises what loading raises, and ModelUnavailable where the version does not answer.
        """
        async with self._lock(served.name):
            incumbent = served.live
            if served.state is not ModelState.READY or incumbent is None:
                raise ModelUnavailable(served.name, served.state.value.lower())
            candidate = await self._lives.load(replace(incumbent.source, config=config, inline=inline))
            served.beside = Beside(incumbent, candidate)
            promoted = False
            try:
                promoted = await steer(served.beside)
            finally:
                served.beside = None
                if promoted:
                    served.live, served.ailing, served.impaired = candidate, "", ""
                    self._reroute()
                # Whoever gives up meanwhile must not leave a configuration behind that nobody frees.
                await asyncio.shield(self._exchanged(incumbent if promoted else candidate))
            if promoted:
                announce(served)
            await self._publish()
            return promoted

    async def _exchanged(self, gone: Live) -> None:
        await self._publish()
        await self._lives.finish(gone)

    async def ail(self, served: Served, live: Live, why: str, impaired: str = "") -> None:
        """Take no requests for ``served`` because of ``why``, or take them again if that is empty; say what it is
        ``impaired`` by.

        Changes nothing where ``live`` is not what it is served by any more.
        """
        if served.live is live and (served.ailing, served.impaired) != (why, impaired):
            served.ailing, served.impaired = why, impaired
            self._reroute()
            await self._publish()

    def stuck(self, name: str | None = None) -> int:
        """How many versions of ``name``, or of all, were let go of and hold memory because a run does not end."""
        return self._lives.stuck(name)

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Let go of the counts of ``versions``, of which nothing is there any more."""
        self._lives.forget(versions)
        forget(versions, {served.name for served, _ in self.holding()}, self.loads, self.rollbacks)

    async def drain(self, seconds: float) -> bool:
        """Wait until every accepted request has ended; False when ``seconds`` were not enough."""
        self._ending = True
        self._retries.close()
        self._stop_trials(*self._trials)
        busy = {live.dispatcher for _, live in self.holding()}
        busy |= {trial.beside.candidate.dispatcher for trial in self._trials.values()}
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
        self._stop_trials(*self._trials)
        if self._changes:
            await asyncio.wait(self._changes)
        held, self._routes = list(self.holding()), {}
        await asyncio.gather(*(self._lives.free(live) for _, live in held))

    async def _to_the_end(self, change: Coroutine[None, None, None]) -> None:
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

    def _break(self, name: str, error: InferdError) -> None:
        self._broken[name] = str(error)
        self.loads[name, "failed"] += 1
        for served in self._models.get(name, {}).values():
            if served.state is ModelState.READY:
                served.reason = f"what is on disk now is not served: {error}"
        log.error("model can't be served", model=name, problem=str(error), **still_serving(self._routes, name))

    def _stop_trials(self, *names: str) -> None:
        """What is to change may not have to wait for what was tried before."""
        for name in names:
            if (trial := self._trials.get(name)) is not None:
                trial.stop.set()

    async def _load_entry(
        self, entry: ModelEntry, *, quietly: bool, anew: bool = True, begun: asyncio.Event | None = None
    ) -> None:
        """Load the versions of ``entry``; also those that are as they were, if ``anew``. ``begun`` is set once one
        shares the requests with the one before it."""
        if (trial := self._trials.get(entry.name)) is not None:
            if trial.entry == entry:
                # Asked for again: what comes of it is the answer to both.
                anew = False
            else:
                trial.stop.set()
        async with self._lock(entry.name):
            self._broken.pop(entry.name, None)
            self._entries[entry.name] = entry
            failures = [f for v in entry.versions if (f := await self._load_version(entry, v, anew, begun)) is not None]
            self._retries.ended(entry.name, failures)
            if not all(isinstance(failure, NotAdopted) for failure in failures):
                self._entries.pop(entry.name, None)
            picked = {v.version for v in entry.versions}
            # Where one failed, what it was to follow stays: better an old version than none.
            known = self._models.get(entry.name, {})
            gone = [s for n, s in known.items() if n not in picked] if not failures else []
            await self._retire(
                [s for s in gone if s.state is ModelState.READY], "no longer picked by the version policy"
            )
            for served in gone:
                del self._models[entry.name][served.version]
        await self._publish()
        if failures and not quietly:
            raise failures[0]

    async def _load_version(
        self, entry: ModelEntry, version: VersionFile, anew: bool, begun: asyncio.Event | None
    ) -> InferdError | None:
        """Load beside what serves now, then switch over. Returns what went wrong."""
        versions = self._models.setdefault(entry.name, {})
        key, old = (entry.name, version.version), versions.get(version.version)
        served = Served(*key)
        # How it is brought into service is nothing that it has to be loaded anew for.
        served.origin = origin = (version, entry.config.model_copy(update={"rollout": Rollout()}))
        before = self._before(served, old)
        if not anew and before is not None:
            if before is old and old.origin == origin:
                old.reason = ""
                return None
            if (turned_away := self._turned_away.get(key)) is not None and turned_away[0] == (version, entry.config):
                return turned_away[1]
            # Written or moved, it may hold the same as before.
            resettled = before is old and old.origin is not None and old.origin[1] == origin[1]
            if resettled and await self._lives.holds(before.live, source_of(entry, version)):
                before.origin, before.reason = origin, ""
                return None
        self._turned_away.pop(key, None)
        if old is None or old.state is not ModelState.READY:
            versions[version.version] = served
            await self._publish()
        candidate: Live | None = None
        try:
            source = source_of(entry, version, self._cpu_parts.get(entry.name, 0))
            candidate = await self._lives.load(source, self._tuned)
            if before is not None:
                await self._check(before, served, candidate)
        except InferdError as error:
            return await self._failed(served, old, error, candidate)
        except Exception:
            # A fault of ours or of a plugin's: this version is lost, the others must not be.
            log.exception("model could not be loaded", model=entry.name, version=version.version)
            return await self._failed(served, old, LoadFailed(*key, "internal error"), candidate)
        self.loads[entry.name, "ok"] += 1
        if before is not None and before.origin != origin and self._shares(before, candidate):
            refusal = await self._try(entry, before, served, candidate, begun)
            if refusal is not None:
                return refusal
        last = before.live if before is not None else None
        if last is not None and last.signature.inputs == candidate.signature.inputs:
            # The next one is asked them too, however soon it comes.
            candidate.dispatcher.samples.extend(last.dispatcher.samples)
        served.live, served.reason = candidate, ""
        if served.state is ModelState.LOADING:
            served.move(ModelState.READY)
        versions[version.version] = served
        self._reroute()
        announce(served)
        await self._publish()
        if old is not None and old.state is ModelState.READY:
            await self._retire([old], "replaced")
        return None

    def _before(self, served: Served, old: Served | None) -> Served | None:
        """Whose requests ``served`` is about to get, None where nobody answers them."""
        if old is not None and old.shown is ModelState.READY:
            return old
        route = self._routes.get((served.name, ""))
        return route[0] if route is not None and route[0].version < served.version else None

    async def _check(self, before: Served, served: Served, candidate: Live) -> None:
        """Raises LoadFailed where ``candidate`` can't take the place of ``before``."""
        incumbent, rollout = before.live, candidate.config.rollout
        if incumbent is None:
            return
        if rollout.check == "outputs" and (why := await objection(incumbent, candidate, rollout.tolerance)):
            raise LoadFailed(served.name, served.version, f"it is not fit to take over: {why}")
        if rollout.canary_share and (incumbent.signature.in_sequences or candidate.signature.in_sequences):
            log.warning("no canary: live sequences can't be shared; it takes over at once", **labels_of(served))
        if self._shares(before, candidate) and (why := misfit(incumbent.signature, candidate.signature)):
            raise LoadFailed(
                served.name,
                served.version,
                f"it can't share requests with version {before.version}: {why}; with rollout.canary_share = 0 it takes "
                "over at once",
            )

    def _shares(self, before: Served, candidate: Live) -> bool:
        """Whether ``candidate`` is to be tried on a part of the requests first."""
        if before.live is None or not candidate.config.rollout.canary_share:
            return False
        if before.live.signature.in_sequences or candidate.signature.in_sequences:
            return False
        return before.shown is ModelState.READY

    async def _try(
        self, entry: ModelEntry, before: Served, served: Served, candidate: Live, begun: asyncio.Event | None
    ) -> InferdError | None:
        """Share the requests between ``before`` and ``served``. Returns why it was rolled back, None where it is to
        have them all."""
        incumbent, rules, same = before.live, rules_under(candidate.config), before.version == served.version
        if incumbent is None:
            return None
        trial = _Trial(entry, asyncio.Event(), Beside(incumbent, candidate), None if same else served)
        said = f"gets {rules.share:.3g} of the requests for {rules.seconds:g} s or longer, then takes over"
        self._trials[served.name] = trial
        if self._ending:
            trial.stop.set()
        if same:
            before.beside, before.reason = trial.beside, f"canary: what is on disk now {said}"
        else:
            served.live, served.on_trial = candidate, True
            served.move(ModelState.READY, f"canary: {said} from version {before.version}")
            self._reroute()
        log.info("canary begins", **labels_of(served), beside=before.version, share=rules.share)
        await self._publish()
        if begun is not None:
            begun.set()
        verdict, why = Verdict.FAILED, "internal error"
        try:
            verdict, why = await Canary(rules, trial.beside, trial.stop, lambda: (served.ailing, before.ailing)).run()
        except Exception:
            log.exception("canary could not be judged", **labels_of(served))
        finally:
            del self._trials[served.name]
            before.beside, served.on_trial = None, False
        if verdict is Verdict.PROMOTED:
            log.info("canary promoted", **labels_of(served), why=why)
            return None
        error = NotAdopted(served.name, verdict.value, why)
        if served.origin is not None and verdict is not Verdict.STOPPED:
            self._turned_away[served.name, served.version] = (served.origin[0], entry.config), error
        await self._roll_back(before, served, candidate, error)
        return error

    async def _roll_back(self, before: Served, served: Served, candidate: Live, error: NotAdopted) -> None:
        """Go on with ``before`` alone, and free ``candidate`` once it has answered what it took."""
        stopped = error.decision == Verdict.STOPPED.value
        self.rollbacks[served.name, str(served.version), error.decision] += 1
        tell = log.info if stopped else log.warning
        tell(
            "canary rolled back",
            **labels_of(served),
            beside=before.version,
            reason=error.decision,
            why=error.why,
        )
        if before.version == served.version:
            before.reason = f"what is on disk now is not served: {error}"
            await self._publish()
            await self._lives.finish(candidate)
        else:
            await self._retire([served], f"rolled back: {error.why}")
            # It is missed, unlike one that somebody unloaded.
            served.wanted = not stopped
            await self._publish()

    async def _failed(
        self, served: Served, old: Served | None, error: InferdError, candidate: Live | None
    ) -> InferdError:
        if candidate is not None:
            await self._lives.free(candidate)
        self.loads[served.name, "failed"] += 1
        served.move(ModelState.UNAVAILABLE, said(error))
        if old is not None and old.state is ModelState.READY:
            old.reason = f"what is on disk now is not served: {said(error)}"
        log.error(
            "model can't be served", **labels_of(served), problem=str(error), **still_serving(self._routes, served.name)
        )
        await self._publish()
        return error

    async def _retire(self, gone: Iterable[Served], reason: str) -> None:
        """Take versions out of the routes, answer what they accepted, free their memory."""
        for served in gone:
            live = served.live
            served.move(ModelState.UNLOADING)
            self._reroute()
            await self._publish()
            if live is not None:
                await self._lives.finish(live)
            served.live, served.ailing, served.impaired, served.wanted = None, "", "", False
            served.move(ModelState.UNAVAILABLE, reason)
            await self._publish()
            log.info("model unloaded", model=served.name, version=served.version, reason=reason)
