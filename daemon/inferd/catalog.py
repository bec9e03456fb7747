"""The model versions being served: loads them, routes to them, swaps and unloads them.

Everything here runs on the event loop's thread; what blocks (disk, compiling, waiting for
infer requests to end) is sent to a worker thread.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import NoReturn

import structlog

from inferd.config.model import ModelConfig
from inferd.dispatcher import Dispatcher, Observer, Station
from inferd.engine.cpu_budget import split
from inferd.engine.device import family
from inferd.engine.model import Engine, LoadedModel
from inferd.engine.source import ModelSource
from inferd.engine.state import most_sequences
from inferd.engine.warmup import joins_requests, rows_joined
from inferd.errors import Draining, InferdError, LoadFailed, ModelUnavailable, UnknownModel, UnknownVersion
from inferd.lifecycle import ModelState, may_move
from inferd.repository import ModelEntry, Repository, VersionFile
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.fairness import SharedDevice
from inferd.scheduling.hangs import HangRule
from inferd.scheduling.objective import Objective
from inferd.scheduling.scheduler import Limits, Rules
from inferd.scheduling.sequences import SequenceLimits
from inferd.tensors import Signature

log = structlog.get_logger("inferd.catalog")


@dataclass(frozen=True, slots=True)
class Live:
    """What a version has while it answers."""

    source: ModelSource
    loaded: LoadedModel
    dispatcher: Dispatcher

    @property
    def config(self) -> ModelConfig:
        return self.source.config

    @property
    def signature(self) -> Signature:
        return self.loaded.signature

    @property
    def joins(self) -> bool:
        """Whether requests may run together."""
        return joins_requests(self.config, self.loaded.signature)

    @property
    def max_joined(self) -> int:
        """How many rows of requests run together at most."""
        return rows_joined(self.config, self.loaded.signature)


class Served:
    """One model version and its state; ``live`` is there while it is READY or UNLOADING, ``beside`` while
    another configuration is tried. ``ailing`` is why it does not answer although it is loaded, "" while it does."""

    def __init__(self, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.state = ModelState.LOADING
        self.reason = ""
        self.wanted = True
        # What it was loaded from.
        self.origin: tuple[VersionFile, ModelConfig] | None = None
        self.live: Live | None = None
        self.beside: Beside | None = None
        self.ailing = ""

    @property
    def shown(self) -> ModelState:
        """The state that others see: whoever does not answer is not ready."""
        return ModelState.UNAVAILABLE if self.ailing and self.state is ModelState.READY else self.state

    def move(self, to: ModelState, reason: str = "") -> None:
        """Enter ``to``; a transition outside the table is a bug."""
        if not may_move(self.state, to):
            raise RuntimeError(f"model '{self.name}' can't go from {self.state.value} to {to.value}")
        self.state, self.reason = to, reason


class Beside:
    """Another configuration of a version that is served: ``candidate`` beside ``incumbent``.

    Both are the same to clients. :meth:`share` says which part of the requests the candidate gets.
    """

    def __init__(self, incumbent: Live, candidate: Live) -> None:
        self.incumbent = incumbent
        self.candidate = candidate
        self._share = 0.0
        self._owed = 0.0

    def share(self, part: float) -> None:
        """Give the candidate ``part`` of the requests from now on, 0..1, evenly spread."""
        self._share = part

    def pick(self) -> Live:
        """Who answers the next request."""
        self._owed += self._share
        if self._owed < 1:
            return self.incumbent
        self._owed -= 1
        return self.candidate


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the repository index; ``version`` is empty for a model that could not be read at all.
    ``wanted`` unless it was unloaded on purpose."""

    name: str
    version: str
    state: ModelState
    reason: str
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class CatalogLimits:
    """Daemon-wide defaults that a model's own configuration may override."""

    queue: Limits
    load_parallelism: int
    drain_seconds: float
    # CPU threads to divide between the models, by weight; 0 where each may have all.
    split_threads: int = 0


def source_of(entry: ModelEntry, version: VersionFile, cpu_threads: int = 0) -> ModelSource:
    """What the engine needs to load ``version`` of ``entry``, with its part of the CPU budget, 0 for all of it."""
    return ModelSource(entry.name, version.version, version.path, version.files, entry.config, cpu_threads)


def cpu_parts(models: Iterable[ModelEntry], threads: int) -> dict[str, int]:
    """``threads`` divided between those ``models`` that may run on the CPU, by their weights."""
    weights = {
        m.name: m.config.share.weight for m in models if any(family(d) not in ("GPU", "NPU") for d in m.config.devices)
    }
    return split(threads, weights) if threads and weights else {}


def rules_of(config: ModelConfig, signature: Signature, defaults: Limits) -> Rules:
    """How a model of ``signature`` is scheduled under ``config``."""
    queue, batching, objective = config.queue, config.batching, config.objective
    return Rules(
        Limits(queue.max_length or defaults.max_length, queue.max_bytes or defaults.max_bytes, defaults.per_client),
        BatchRule(
            rows_joined(config, signature),
            _nanoseconds(batching.max_delay),
            tuple(sorted(batching.preferred_sizes)),
        ),
        Objective(_nanoseconds(objective.latency_slo), objective.percentile) if objective.latency_slo else None,
        SequenceLimits(most_sequences(config, signature), _nanoseconds(config.sequences.idle_timeout))
        if signature.in_sequences
        else None,
        signature.stateful,
        hangs_of(config.execution.hang_timeout),
    )


def hangs_of(timeout: float | None) -> HangRule | None:
    """When runs count as hung under a model's hang_timeout; None for never."""
    if timeout is None:
        return HangRule()
    return HangRule(_nanoseconds(timeout)) if timeout else None


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class Catalog:
    """Models by name and version; ``loads`` counts attempts to load by model and result. ``changed`` is awaited after
    each change of a state; ``tuned`` may replace settings that a model leaves open before it is loaded, and runs on a
    worker thread."""

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
        self._engine = engine
        self._limits = limits
        self._observe = observe
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
        self._compiling = asyncio.Semaphore(limits.load_parallelism)
        self._devices: dict[str, SharedDevice] = {}
        self._stuck: list[tuple[str, LoadedModel]] = []
        self.loads: Counter[tuple[str, str]] = Counter()
        self._cpu_parts: dict[str, int] = {}

    # -- routing ------------------------------------------------------------------

    def resolve(self, name: str, version: str) -> tuple[Served, Live]:
        """The version that answers; an empty ``version`` means the newest that is ready.

        Raises UnknownModel, UnknownVersion or ModelUnavailable.
        """
        route = self._routes.get((name, version))
        if route is None:
            self._explain(name, version)
        if (beside := route[0].beside) is not None:
            return route[0], beside.pick()
        return route

    def versions(self, name: str) -> list[int]:
        """The versions of ``name`` that are known, ascending; raises UnknownModel."""
        if name not in self._models and name not in self._broken:
            raise UnknownModel(name)
        return sorted(self._models.get(name, {}))

    def ready(self, name: str, version: str) -> bool:
        """Whether that version answers; raises UnknownModel or UnknownVersion."""
        try:
            self.resolve(name, version)
        except ModelUnavailable:
            return False
        return True

    def _explain(self, name: str, version: str) -> NoReturn:
        known = self.versions(name)
        served = self._models.get(name, {})
        if version:
            one = next((s for number, s in served.items() if str(number) == version), None)
            if one is None:
                raise UnknownVersion(name, version, known)
            raise ModelUnavailable(name, f"{one.shown.value.lower()} in version {version}", one.ailing or one.reason)
        states = {s.shown for s in served.values()}
        state = ModelState.LOADING if ModelState.LOADING in states else ModelState.UNAVAILABLE
        reason = self._broken.get(name) or next((why for s in served.values() if (why := s.ailing or s.reason)), "")
        raise ModelUnavailable(name, state.value.lower(), reason)

    def _reroute(self) -> None:
        routes = {}
        for name, versions in self._models.items():
            for number in sorted(versions):
                served = versions[number]
                if served.shown is ModelState.READY and served.live is not None:
                    routes[name, str(number)] = routes[name, ""] = (served, served.live)
        self._routes = routes

    # -- what is there ------------------------------------------------------------

    def index(self) -> tuple[IndexEntry, ...]:
        """Every version known and every model that can't be read, by name and version. Any thread may ask."""
        return self._index

    async def _publish(self) -> None:
        """Let others see a change of state."""
        entries = [
            IndexEntry(name, str(number), served.shown, served.ailing or served.reason, served.wanted)
            for name, versions in self._models.items()
            for number, served in sorted(versions.items())
        ]
        entries += [
            IndexEntry(name, "", ModelState.UNAVAILABLE, reason)
            for name, reason in self._broken.items()
            if not self._models.get(name)
        ]
        self._index = tuple(sorted(entries, key=lambda e: (e.name, int(e.version or 0))))
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

        New versions are loaded beside the old; what fails leaves the old one serving.
        Raises UnknownModel, or the error that kept it from loading. Goes on to its end
        when the caller stops waiting.
        """
        await self._to_the_end(self._load(name))

    async def _load(self, name: str) -> None:
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
        await self._load_entry(entry, quietly=False)

    async def reload(self) -> None:
        """Serve what the repository holds now, and go on with what it held already.

        What is new, has changed or failed before is loaded, changed versions beside the old ones; what is gone is
        unloaded. What a client unloaded stays so until its files change. What fails is logged, and leaves what was
        served serving. Raises RepositoryError where the repository can't be read; then nothing changes.
        """
        await self._to_the_end(self._reload())

    async def _reload(self) -> None:
        listing = await asyncio.to_thread(self._repository.scan)
        self._cpu_parts = cpu_parts(listing.models, self._limits.split_threads)
        for broken in listing.broken:
            self._break(broken.name, broken.error)
        present = {entry.name for entry in listing.models} | {broken.name for broken in listing.broken}
        gone = [name for name in {*self._models, *self._broken} if name not in present]
        changed = [entry for entry in listing.models if self._differs(entry)]
        await self._publish()
        await asyncio.gather(
            *(self._load_entry(entry, quietly=True, anew=False) for entry in changed),
            *(self._vanish(name) for name in gone),
        )

    def _differs(self, entry: ModelEntry) -> bool:
        """Whether there is something to load: other files or settings than before, or a version that failed."""
        served = self._models.get(entry.name, {}).values()
        failed = any(s.wanted and s.shown is ModelState.UNAVAILABLE for s in served)
        return failed or entry.name in self._broken or self._entries.get(entry.name) != entry

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
        async with self._lock(name):
            ready = [s for s in self._models.get(name, {}).values() if s.state is ModelState.READY]
            await self._retire(ready, "unloaded")

    async def roll_out(self, served: Served, config: ModelConfig, steer: Callable[[Beside], Awaitable[bool]]) -> bool:
        """Load ``served`` as ``config`` has it beside what answers now, and have ``steer`` try it.

        What ``steer`` returns says which of the two goes on; the other answers what it has
        taken and is freed. Also when ``steer`` raises or is cancelled: then the old one stays.
        Raises what loading raises, and ModelUnavailable where the version does not answer.
        """
        async with self._lock(served.name):
            incumbent = served.live
            if served.state is not ModelState.READY or incumbent is None:
                raise ModelUnavailable(served.name, served.state.value.lower())
            source = replace(incumbent.source, config=config)
            async with self._compiling:
                loaded = await asyncio.to_thread(self._engine.load, source)
            candidate = Live(source, loaded, self._dispatcher(source, loaded))
            served.beside = Beside(incumbent, candidate)
            promoted = False
            try:
                promoted = await steer(served.beside)
            finally:
                served.beside = None
                if promoted:
                    served.live, served.ailing = candidate, ""
                    self._reroute()
                # Whoever gives up meanwhile must not leave a configuration behind that nobody frees.
                await asyncio.shield(self._exchanged(incumbent if promoted else candidate))
            if promoted:
                _announce(served)
            await self._publish()
            return promoted

    async def _exchanged(self, gone: Live) -> None:
        await self._publish()
        await self._finish(gone)

    async def ail(self, served: Served, live: Live, why: str) -> None:
        """Take no requests for ``served`` because of ``why``, or take them again if that is empty.

        Changes nothing where ``live`` is not what it is served by any more.
        """
        if served.live is live and served.ailing != why:
            served.ailing = why
            self._reroute()
            await self._publish()

    def stuck(self, name: str | None = None) -> int:
        """How many versions of ``name``, or of all, were let go of and hold memory because a run does not end."""
        self._stuck = [(of, loaded) for of, loaded in self._stuck if not loaded.freed]
        return sum(name in (None, of) for of, _ in self._stuck)

    async def drain(self, seconds: float) -> bool:
        """Wait until every accepted request has ended; False when ``seconds`` were not enough."""
        waits = [asyncio.ensure_future(live.dispatcher.drained()) for _, live in self.holding()]
        if not waits:
            return True
        _, pending = await asyncio.wait(waits, timeout=seconds)
        for wait in pending:
            wait.cancel()
        return not pending

    async def close(self) -> None:
        """Answer what is left and free every infer request. Harmless when called again."""
        if self._changes:
            await asyncio.wait(self._changes)
        held, self._routes = list(self.holding()), {}
        await asyncio.gather(*(self._free(live) for _, live in held))

    async def _to_the_end(self, change: Coroutine[None, None, None]) -> None:
        """A client that hangs up must not leave a version half unloaded."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._change_ended)
        await asyncio.shield(task)

    def _change_ended(self, task: asyncio.Task[None]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # seen: it was logged where it arose, whether or not anyone still waits

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _break(self, name: str, error: InferdError) -> None:
        self._broken[name] = str(error)
        self.loads[name, "failed"] += 1
        log.error("model can't be served", model=name, problem=str(error))

    async def _load_entry(self, entry: ModelEntry, *, quietly: bool, anew: bool = True) -> None:
        """Load the versions of ``entry``; also those that are as they were, if ``anew``."""
        async with self._lock(entry.name):
            self._broken.pop(entry.name, None)
            self._entries[entry.name] = entry
            failures = [f for v in entry.versions if (f := await self._load_version(entry, v, anew=anew)) is not None]
            if failures:
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

    async def _load_version(self, entry: ModelEntry, version: VersionFile, *, anew: bool) -> InferdError | None:
        """Load beside what serves now, then switch over. Returns what went wrong."""
        versions = self._models.setdefault(entry.name, {})
        old = versions.get(version.version)
        served = Served(entry.name, version.version)
        served.origin = (version, entry.config)
        if not anew and old is not None and old.shown is ModelState.READY and old.origin == served.origin:
            return None
        if old is None or old.state is not ModelState.READY:
            versions[version.version] = served
            await self._publish()
        try:
            async with self._compiling:
                source = source_of(entry, version, self._cpu_parts.get(entry.name, 0))
                source = await asyncio.to_thread(self._tuned, source)
                loaded = await asyncio.to_thread(self._engine.load, source)
        except InferdError as error:
            return await self._failed(served, old, error)
        except Exception:
            # A fault of ours or of a plugin's: this version is lost, the others must not be.
            log.exception("model could not be loaded", model=entry.name, version=version.version)
            return await self._failed(served, old, LoadFailed(entry.name, version.version, "internal error"))
        self.loads[entry.name, "ok"] += 1
        served.live = Live(source, loaded, self._dispatcher(source, loaded))
        served.move(ModelState.READY)
        versions[version.version] = served
        self._reroute()
        _announce(served)
        await self._publish()
        if old is not None and old.state is ModelState.READY:
            await self._retire([old], "replaced")
        return None

    async def _failed(self, served: Served, old: Served | None, error: InferdError) -> InferdError:
        self.loads[served.name, "failed"] += 1
        served.move(ModelState.UNAVAILABLE, str(error))
        if old is not None and old.state is ModelState.READY:
            old.reason = f"what is on disk now is not served: {error}"
        log.error("model can't be served", model=served.name, version=served.version, problem=str(error))
        await self._publish()
        return error

    def _dispatcher(self, source: ModelSource, loaded: LoadedModel) -> Dispatcher:
        config = source.config
        return Dispatcher(
            source.name,
            source.version,
            rules_of(config, loaded.signature, self._limits.queue),
            [
                Station(p.pool, p.times, self._device(p.pool.device).join(config.share.weight, p.width))
                for p in loaded.pools
            ],
            self._observe,
            asyncio.get_running_loop(),
            loaded.signature.states,
        )

    def _device(self, name: str) -> SharedDevice:
        return self._devices.setdefault(name, SharedDevice())

    async def _retire(self, gone: Iterable[Served], reason: str) -> None:
        """Take versions out of the routes, answer what they accepted, free their memory."""
        for served in gone:
            live = served.live
            served.move(ModelState.UNLOADING)
            self._reroute()
            await self._publish()
            if live is not None:
                await self._finish(live)
            served.live, served.ailing, served.wanted = None, "", False
            served.move(ModelState.UNAVAILABLE, reason)
            await self._publish()
            log.info("model unloaded", model=served.name, version=served.version, reason=reason)

    async def _finish(self, live: Live) -> None:
        try:
            await asyncio.wait_for(live.dispatcher.drained(), self._limits.drain_seconds)
        except TimeoutError:
            log.warning("drain timed out; what is left is answered UNAVAILABLE")
        await self._free(live)

    async def _free(self, live: Live) -> None:
        """Answer what is left, then end what runs."""
        live.dispatcher.abort(Draining())
        live.dispatcher.close()
        await asyncio.to_thread(live.loaded.close)
        if not live.loaded.freed:
            log.error("a run does not end; its memory is kept", model=live.source.name, version=live.source.version)
            self._stuck.append((live.source.name, live.loaded))


def _announce(served: Served) -> None:
    if served.live is None:
        return
    for entry in served.live.loaded.pools:
        effective = entry.effective
        log.info(
            "model ready",
            model=served.name,
            version=served.version,
            device=entry.pool.device,
            precision=effective.precision,
            streams=effective.streams,
            threads=effective.threads,
            infer_requests=entry.pool.size,
            from_cache=entry.from_cache,
        )
