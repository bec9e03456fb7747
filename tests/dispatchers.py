"""Dispatchers to put requests into: over fakes that a test ends, and over loaded models."""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from inferd.dispatcher import DispatchedModel, Dispatcher
from inferd.engine.dispatch_pool import DispatchPool
from inferd.engine.model import LoadedModel
from inferd.engine.pool import Pool
from inferd.engine.runtime import ov
from inferd.errors import Draining
from inferd.requests import Observation
from inferd.scheduling.fairness import Share
from inferd.scheduling.rules import QueueLimits, SchedulerRules
from inferd.tensors import StateLink
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.replies import Answer, ask

ROOM = QueueLimits(10_000, 1 << 30)


class Bench:
    """A dispatcher over pools of fakes: ``slots[pool][slot]`` are theirs to end."""

    def __init__(
        self,
        *sizes: int,
        limits: QueueLimits = ROOM,
        service_times: Sequence[float] = (),
        rules: SchedulerRules | None = None,
        states: Sequence[StateLink] = (),
        share: Share | None = None,
        gains: Sequence[tuple[int, float]] = (),
        slot: Callable[[Callable[[], None]], FakeSlot] = FakeSlot,
    ) -> None:
        self.seen: list[Observation] = []
        self.slots: list[list[FakeSlot]] = []
        pools = [self._pool(f"CPU.{i}", size, slot) for i, size in enumerate(sizes)]
        dispatch_pools = [
            DispatchPool(pool, [(1, seen), *gains], share)
            for pool, seen in zip(pools, service_times or [0.0] * len(sizes), strict=True)
        ]
        self.dispatcher = Dispatcher(
            DispatchedModel("m", 3, states), rules or SchedulerRules(limits), dispatch_pools, observe=self.seen.append
        )

    def _pool(self, device: str, size: int, slot: Callable[[Callable[[], None]], FakeSlot]) -> Pool:
        slots: list[FakeSlot] = []

        def make(on_done: Callable[[], None]) -> FakeSlot:
            slots.append(slot(on_done))
            return slots[-1]

        pool = Pool(device, size, make)
        self.slots.append(slots)
        return pool

    def submit(self, count: int = 1, deadline: int | None = None) -> list[Answer]:
        asked = [ask(deadline=deadline) for _ in range(count)]
        for request, _ in asked:
            self.dispatcher.submit(request)
        return [answer for _, answer in asked]

    @property
    def running(self) -> list[FakeSlot]:
        """The slots with a run in flight."""
        return [slot for slot in chain(*self.slots) if slot.running]

    def outcomes(self) -> list[str]:
        return [observation.outcome for observation in self.seen]


class RealBench:
    """A dispatcher over a loaded model; ``learnt`` says whether it knows the times seen at warm-up."""

    def __init__(
        self,
        loaded: LoadedModel,
        rules: SchedulerRules | None = None,
        *,
        learnt: bool = True,
        share: Share | None = None,
    ) -> None:
        self.loaded = loaded
        self.seen: list[Observation] = []
        dispatch_pools = [DispatchPool(entry.pool, entry.times if learnt else (), share) for entry in loaded.pools]
        model = DispatchedModel("m", 1, loaded.signature.states)
        self.dispatcher = Dispatcher(model, rules or SchedulerRules(ROOM), dispatch_pools, observe=self.seen.append)

    async def __aenter__(self) -> "RealBench":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.dispatcher.abort(Draining())
        await self.dispatcher.drained()
        self.loaded.close()


def load(network: ov.Model, folder: Path, toml: str = "") -> LoadedModel:
    return models.engine().load(models.source(models.save(network, folder), toml))
