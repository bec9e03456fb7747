"""Loads and frees the deployment of a model version: the engine's part of the catalog."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from inferd.config.daemon import Settings
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.deployment.settings import rules_of
from inferd.dispatcher import DispatchedModel, Dispatcher, Observer
from inferd.engine.dispatch_pool import DispatchPool
from inferd.engine.model import Engine, LoadedModel
from inferd.engine.source import ModelSource
from inferd.errors import ContentChanged, Draining, InferdError
from inferd.scheduling.fairness import SharedDevice
from inferd.scheduling.rules import QueueLimits

# How often to retry a load whose files change while they are read.
_TRIES = 3

log = structlog.get_logger("inferd.catalog")


@dataclass(frozen=True, slots=True)
class CatalogLimits:
    """Daemon-wide defaults that a model's own configuration may override."""

    queue: QueueLimits
    load_parallelism: int
    drain_seconds: float
    # CPU threads to divide between the models, by weight; 0 where each may have all.
    split_threads: int = 0

    @classmethod
    def of(cls, settings: Settings, cpu_threads: int) -> "CatalogLimits":
        """As ``settings`` have them, with so many threads for inference on the CPU."""
        return cls(
            QueueLimits(settings.queue_max_length, settings.queue_max_bytes, settings.client_max_requests or None),
            settings.load_parallelism,
            settings.drain_timeout,
            cpu_threads if settings.cpu_sharing == "split" else 0,
        )


class Loader:
    """Loads up to ``load_parallelism`` versions at a time. A retired version may be stuck: a hung run holds its
    memory."""

    def __init__(self, engine: Engine, limits: CatalogLimits, observe: Observer) -> None:
        self._engine = engine
        self._limits = limits
        self._observe = observe
        self._compiling = asyncio.Semaphore(limits.load_parallelism)
        self._devices: dict[str, SharedDevice] = {}
        self._unfreed: list[tuple[str, LoadedModel]] = []
        # Nanoseconds of versions that are gone, and the versions that are there; replaced as one: any thread may ask.
        self._work: dict[tuple[str, str], tuple[int, tuple[Dispatcher, ...]]] = {}

    async def load(
        self, source: ModelSource, tuned: Callable[[ModelSource], ModelSource] = lambda source: source
    ) -> Deployment:
        """Load ``source`` with the settings that ``tuned`` gives it, on a worker thread. Raises what the engine raises.

        If its files change meanwhile, it is loaded again, unless it was settled: then only that content will do.
        """
        async with self._compiling:
            source, loaded = await asyncio.to_thread(self._loaded, source, tuned)
        deployment = Deployment(source, loaded, self._dispatcher(source, loaded))
        ended, there = self._work.get(key := _key(deployment), (0, ()))
        self._work[key] = ended, (*there, deployment.dispatcher)
        return deployment

    def busy_ns(self) -> dict[tuple[str, str], int]:
        """Nanoseconds that infer requests were in use, by name and version, over all deployments so far. Any thread may
        ask."""
        return {key: ended + sum(one.busy_ns for one in there) for key, (ended, there) in self._work.copy().items()}

    def forget(self, versions: Iterable[tuple[str, str]]) -> None:
        """Drop the :meth:`busy_ns` of ``versions`` that are gone."""
        for key in versions:
            if not self._work.get(key, (0, ()))[1]:
                self._work.pop(key, None)

    def _loaded(
        self, source: ModelSource, tuned: Callable[[ModelSource], ModelSource]
    ) -> tuple[ModelSource, LoadedModel]:
        tries = _TRIES if source.content is None else 1
        while True:
            try:
                chosen = tuned(source.settled())
                return chosen, self._engine.load(chosen)
            except ContentChanged:
                tries -= 1
                if not tries:
                    raise

    async def holds(self, deployment: Deployment | None, source: ModelSource) -> bool:
        """Read all files of ``source``: do they have the content that ``deployment`` was loaded from?"""
        if deployment is None:
            return False
        try:
            async with self._compiling:
                return (await asyncio.to_thread(source.settled)).digest == deployment.source.digest
        except InferdError:
            return False

    def unfreed(self, name: str | None = None) -> int:
        """How many retired versions of ``name``, or of all models, still hold memory because a run hangs."""
        self._unfreed = [(of, loaded) for of, loaded in self._unfreed if not loaded.freed]
        return sum(name in (None, of) for of, _ in self._unfreed)

    def _dispatcher(self, source: ModelSource, loaded: LoadedModel) -> Dispatcher:
        config = source.config
        return Dispatcher(
            DispatchedModel(source.name, source.version, loaded.signature.states, loaded.shapes),
            rules_of(config, loaded.signature, self._limits.queue),
            [
                DispatchPool(p.pool, p.times, self._device(p.pool.device).join(config.share.weight, p.width))
                for p in loaded.pools
            ],
            observe=self._observe,
        )

    def _device(self, name: str) -> SharedDevice:
        return self._devices.setdefault(name, SharedDevice())

    async def finish(self, deployment: Deployment) -> None:
        """Let it answer its accepted requests, for at most the drain timeout, then free it."""
        try:
            await asyncio.wait_for(deployment.dispatcher.drained(), self._limits.drain_seconds)
        except TimeoutError:
            log.warning("drain timed out; remaining requests answered UNAVAILABLE")
        await self.free(deployment)

    async def free(self, deployment: Deployment) -> None:
        """Answer the remaining requests, then end its runs."""
        deployment.dispatcher.abort(Draining())
        deployment.dispatcher.close()
        await asyncio.to_thread(deployment.loaded.close)
        ended, there = self._work.get(key := _key(deployment), (0, ()))
        if deployment.dispatcher in there:
            left = tuple(one for one in there if one is not deployment.dispatcher)
            self._work[key] = ended + deployment.dispatcher.busy_ns, left
        if not deployment.loaded.freed:
            log.error(
                "hung run not ended; its memory is kept",
                model=deployment.source.name,
                version=deployment.source.version,
            )
            self._unfreed.append((deployment.source.name, deployment.loaded))


def _key(deployment: Deployment) -> tuple[str, str]:
    return deployment.source.name, str(deployment.source.version)


def log_ready(model_version: ModelVersion) -> None:
    """Log how ``model_version`` runs on each of its devices."""
    if model_version.deployment is None:
        return
    for entry in model_version.deployment.loaded.pools:
        effective = entry.effective
        log.info(
            "model ready",
            model=model_version.name,
            version=model_version.version,
            device=entry.pool.device,
            precision=effective.precision,
            streams=effective.streams,
            threads=effective.threads,
            infer_requests=entry.pool.size,
            inline=entry.pool.inline,
            from_cache=entry.from_cache,
        )
    if remarks := model_version.deployment.signature.remarks:
        log.info(
            "model narrows numbers", model=model_version.name, version=model_version.version, remarks=list(remarks)
        )
