"""Measures candidates: loads the model with each one's settings and puts it under full load."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from inferd.deployment.settings import rules_of
from inferd.dispatcher import DispatchedModel, Dispatcher
from inferd.engine.device import Effective
from inferd.engine.dispatch_pool import DispatchPool
from inferd.engine.model import Engine, LoadedModel
from inferd.engine.source import ModelSource
from inferd.engine.warmup import max_batch_rows, synthetic_inputs, uses_dynamic_batching
from inferd.errors import Draining, InferdError
from inferd.scheduling.rules import QueueLimits
from inferd.tensors import Tensor
from inferd.tuner.configure import configured
from inferd.tuner.load import LoadGenerator, Traffic
from inferd.tuning.candidates import Candidate
from inferd.tuning.measurement import Measurement, MeasurementWindow

# Seconds under load before the first window: clocks, caches and learnt service times settle.
_SETTLE = 0.15
# The race measures contenders in turn, so this many stay loaded, each with its own weights.
_KEPT = 3
_ROOM = QueueLimits(1_000_000, 1 << 40)


@dataclass(frozen=True, slots=True)
class LoadedCandidate:
    """A candidate that is ready to be measured."""

    model: LoadedModel
    dispatcher: Dispatcher
    effective: Candidate


@dataclass(frozen=True, slots=True)
class Companion:
    """A model that runs at the same time, and how many requests keep it busy."""

    model: LoadedModel
    dispatcher: Dispatcher
    traffic: Traffic
    in_flight: int


class Probe:
    """Measures candidates for ``source`` on its only device with ``samples`` as inputs, or synthetic inputs if empty.

    Each measurement takes ``windows`` of ``window_seconds`` while the ``companions`` run under full load. Do not use
    on a running event loop.
    """

    def __init__(
        self,
        engine: Engine,
        source: ModelSource,
        window_seconds: float,
        *,
        samples: Sequence[Sequence[Tensor]] = (),
        companions: Sequence[ModelSource] = (),
    ) -> None:
        self._engine = engine
        self._source = source
        self._seconds = window_seconds
        self._samples = samples
        self._runner = asyncio.Runner()
        self._loaded: OrderedDict[Candidate, LoadedCandidate] = OrderedDict()
        self._companions = list(companions)
        self._busy_companions: list[Companion] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free every candidate. Harmless when called again."""
        while self._loaded:
            self._free(self._loaded.popitem()[1])
        while self._busy_companions:
            self._free(self._busy_companions.pop())
        self._runner.close()

    def measure(self, candidate: Candidate, windows: int) -> Measurement:
        """Measure ``candidate``. Never raises: a candidate that fails yields a failed measurement."""
        begun = time.monotonic()
        effective, seen, failure = candidate, tuple[MeasurementWindow, ...](), None
        try:
            loaded = self._load(candidate)
            effective = loaded.effective
            seen = tuple(self._runner.run(self._look(loaded, candidate, windows)))
        except InferdError as error:
            failure = str(error)
        return Measurement(candidate, effective, seen, time.monotonic() - begun, failure)

    def arrive(self, candidate: Candidate, rate: float, seconds: float) -> MeasurementWindow:
        """``candidate`` under random arrivals at ``rate`` per second. Raises InferdError if it can't be loaded."""
        return self._runner.run(self._arrive(self._load(candidate), candidate, rate, seconds))

    def _load(self, candidate: Candidate) -> LoadedCandidate:
        if (known := self._loaded.get(candidate)) is not None:
            self._loaded.move_to_end(candidate)
            return known
        while len(self._loaded) >= _KEPT:
            self._free(self._loaded.popitem(last=False)[1])
        while self._companions:
            self._busy_companions.append(self._accompany(self._companions.pop()))
        source = replace(self._source, config=configured(self._source.config, candidate))
        model = self._engine.load(source)
        [entry] = model.pools
        effective = effective_of(candidate, entry.effective, entry.pool.width)
        loaded = LoadedCandidate(model, self._runner.run(_dispatcher(source, model)), effective)
        self._loaded[candidate] = loaded
        return loaded

    def _accompany(self, source: ModelSource) -> Companion:
        model = self._engine.load(source)
        dynamic_batching = uses_dynamic_batching(source.config, model.signature)
        traffic = Traffic(model.signature, [synthetic_inputs(source, model.signature)], dynamic_batching)
        rows = max_batch_rows(source.config, model.signature)
        in_flight = sum(entry.pool.width for entry in model.pools) * rows
        return Companion(model, self._runner.run(_dispatcher(source, model)), traffic, in_flight)

    def _free(self, loaded: LoadedCandidate | Companion) -> None:
        self._runner.run(_freed(loaded))

    def _traffic(self, loaded: LoadedCandidate, candidate: Candidate) -> Traffic:
        signature = loaded.model.signature
        return Traffic(
            signature,
            self._samples or [synthetic_inputs(self._source, signature)],
            candidate.batch > 1 and uses_dynamic_batching(self._source.config, signature),
        )

    async def _look(self, loaded: LoadedCandidate, candidate: Candidate, windows: int) -> list[MeasurementWindow]:
        load = LoadGenerator(loaded.dispatcher, self._traffic(loaded, candidate))
        async with _busy(self._busy_companions):
            return await load.closed_loop(candidate.requests * candidate.batch, windows, self._seconds, _SETTLE)

    async def _arrive(
        self, loaded: LoadedCandidate, candidate: Candidate, rate: float, seconds: float
    ) -> MeasurementWindow:
        async with _busy(self._busy_companions):
            return await LoadGenerator(loaded.dispatcher, self._traffic(loaded, candidate)).open_loop(rate, seconds)


@asynccontextmanager
async def _busy(companions: Sequence[Companion]) -> AsyncIterator[None]:
    """Keep ``companions`` fully loaded inside the context."""
    over = asyncio.Event()
    loads = [asyncio.create_task(LoadGenerator(c.dispatcher, c.traffic).until(over, c.in_flight)) for c in companions]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*loads)


async def _dispatcher(source: ModelSource, model: LoadedModel) -> Dispatcher:
    return Dispatcher(
        DispatchedModel(source.name, source.version, model.signature.states),
        # Refuse nothing: whether the objective is met is what is being measured.
        replace(rules_of(source.config, model.signature, _ROOM), objective=None),
        [DispatchPool(entry.pool, entry.times) for entry in model.pools],
        observe=lambda _: None,
    )


def effective_of(candidate: Candidate, seen: Effective, requests: int) -> Candidate:
    """``candidate`` with the settings the device reports; settings it does not report are unchanged."""
    told: dict[str, Any] = {
        axis: value
        for axis, value in seen.choices.items()
        if value is not None and getattr(candidate, axis) is not None
    }
    return replace(
        candidate,
        streams=seen.streams or candidate.streams,
        threads=seen.threads or candidate.threads,
        requests=requests,
        **told,
    )


async def _freed(loaded: LoadedCandidate | Companion) -> None:
    loaded.dispatcher.abort(Draining())
    loaded.dispatcher.close()
    await asyncio.to_thread(loaded.model.close)
