"""A candidate next to the current version: compared, given a share, promoted or rolled back, without an effect on
requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferd.catalog.catalog import Catalog
from inferd.deployment.loader import CatalogLimits
from inferd.deployment.model_version import ModelVersion
from inferd.deployment.traffic_split import TrafficSplit
from inferd.engine.model import Engine, LoadedModel
from inferd.engine.runtime import ov
from inferd.engine.source import ModelSource
from inferd.errors import LoadFailed, ModelUnavailable
from inferd.lifecycle import ModelState
from inferd.repository.find import Repository
from inferd.requests import Observation, Request
from inferd.rollout.output_check import configuration_mismatch
from inferd.rollout.policy import RolloutDecision
from inferd.rollout.rollout import Rollout
from inferd.rollout.synthetic_request import answer
from inferd.rollout.trial import Stage, Trial
from inferd.scheduling.rules import QueueLimits
from tests import models
from tests.engine import models as small
from tests.event_loop import on_loop, until
from tests.replies import ask

SHORT = (Stage(0.0, 20, 30.0), Stage(0.25, 5, 30.0), Stage(0.5, 20, 30.0))


class Substituting(Engine):
    """Loads the model in ``instead`` for a configuration that ``when`` holds of: a candidate gone wrong."""

    def __init__(self, cpu_threads: int, cache: Any, instead: Path, when: Callable[[ModelSource], bool]) -> None:
        super().__init__(cpu_threads, cache)
        self._instead, self._when = instead, when

    def load(self, source: ModelSource) -> LoadedModel:
        if self._when(source):
            source = replace(source, file_set=small.source(self._instead).file_set, content=None)
        return super().load(source)


class Traffic:
    """A catalog with one model, and requests that keep coming until the end."""

    def __init__(self, catalog: Catalog, seen: list[Observation]) -> None:
        self.catalog = catalog
        self.seen = seen
        self.answers: list[list[float]] = []
        self._going = True

    @property
    def model_version(self) -> ModelVersion:
        return self.catalog.resolve("m", "")[0]

    async def send(self) -> None:
        """One request after the other, to whichever side it is routed to."""
        while self._going:
            _, deployment = self.catalog.resolve("m", "")
            request, reply = ask([1, 2, 3, 4])
            request.stages.received = time.monotonic_ns()
            deployment.dispatcher.submit(request)
            self.answers.append((await reply.ended()).outputs[0].tolist())
            # What runs on the loop's own thread is answered before it is waited for.
            await asyncio.sleep(0)

    def end(self) -> None:
        self._going = False


def three(source: ModelSource) -> bool:
    return source.config.execution.infer_requests == 3


@asynccontextmanager
async def traffic(tmp_path: Path, instead: ov.Model | None = None, clients: int = 4) -> AsyncIterator[Traffic]:
    """Four clients ask the model that doubles; with ``instead``, that is what candidates load."""
    models.save(small.scaled(2), tmp_path / "repository", "m")
    seen: list[Observation] = []

    async def changed() -> None:
        return

    wrong = small.save(instead, tmp_path / "other") if instead is not None else Path()
    cache = small.engine()._compiler._cache
    engine = Substituting(2, cache, wrong, three) if instead is not None else Engine(2, cache)
    limits = CatalogLimits(QueueLimits(1000, 1 << 30), 1, 10.0)
    catalog = Catalog(Repository(tmp_path / "repository"), engine, limits, observe=seen.append, changed=changed)
    await catalog.load_all()
    busy = Traffic(catalog, seen)
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(busy.send())
        try:
            yield busy
        finally:
            busy.end()
    await catalog.close()


def candidate(model_version: ModelVersion) -> Any:
    """Other settings, recognised by their three infer requests."""
    assert model_version.deployment is not None
    config = model_version.deployment.config
    return config.model_copy(update={"execution": config.execution.model_copy(update={"infer_requests": 3})})


def rollout_of(trial: Trial, stop: asyncio.Event | None = None) -> Rollout:
    return Rollout(trial, stop or asyncio.Event(), check=configuration_mismatch)


async def rolled_out(busy: Traffic, trial: Trial | None = None) -> tuple[bool, Rollout]:
    rollout = rollout_of(trial or Trial(None, stages=SHORT))
    promoted = await busy.catalog.roll_out(busy.model_version, candidate(busy.model_version), rollout.steer)
    return promoted, rollout


def infer_requests(model_version: ModelVersion) -> int:
    assert model_version.deployment is not None
    return model_version.deployment.loaded.pools[0].pool.size


@on_loop
async def test_a_sound_candidate_takes_over_and_no_request_notices(tmp_path: Path) -> None:
    async with traffic(tmp_path) as busy:
        await until(lambda: len(busy.answers) > 20)
        before = busy.model_version.deployment
        # An objective that other work on the machine does not break either.
        promoted, rollout = await rolled_out(busy, Trial(10.0, stages=SHORT))
        assert (promoted, rollout.result.decision) == (True, RolloutDecision.PROMOTED)
        assert busy.model_version.deployment is not before
        assert infer_requests(busy.model_version) == 3
        after = len(busy.answers)
        await until(lambda: len(busy.answers) > after + 20)
    assert busy.answers == [[2.0, 4.0, 6.0, 8.0]] * len(busy.answers)
    assert {seen.outcome for seen in busy.seen} == {"ok"}
    # Comparisons are requests of our own: each of the clients' is counted, and nothing else.
    assert len(busy.seen) == len(busy.answers)


@on_loop
async def test_a_candidate_that_answers_otherwise_never_sees_a_clients_request(tmp_path: Path) -> None:
    async with traffic(tmp_path, small.scaled(2.1)) as busy:
        await until(lambda: len(busy.answers) > 20)
        before = busy.model_version.deployment
        promoted, rollout = await rolled_out(busy)
        assert (promoted, rollout.result.decision) == (False, RolloutDecision.WRONG_OUTPUT)
        assert "output 0 is off by" in rollout.result.why
        assert busy.model_version.deployment is before
    assert busy.answers == [[2.0, 4.0, 6.0, 8.0]] * len(busy.answers)


def laborious(factor: float) -> ov.Model:
    """``factor`` times x, by way of some milliseconds of matrix products."""
    x = small.parameter([4])
    node = small.op.broadcast(x, small.op.constant([256, 4]))
    node = small.op.concat([node] * 64, 1)
    weights = small.op.constant(np.full((256, 256), 1 / 256, np.float32))
    for _ in range(60):
        node = small.op.matmul(node, weights, False, False)
    nothing = small.op.multiply(
        small.op.reduce_max(node, small.op.constant([0, 1]), False), small.op.constant(np.float32(0))
    )
    doubled = small.op.multiply(x, small.op.constant(np.float32(factor)))
    return small.model({"y": small.op.add(doubled, nothing)}, [x])


@on_loop
async def test_a_candidate_that_is_slower_is_rolled_back(tmp_path: Path) -> None:
    async with traffic(tmp_path, laborious(2)) as busy:
        await until(lambda: len(busy.answers) > 20)
        before = busy.model_version.deployment
        promoted, rollout = await rolled_out(busy)
        assert (promoted, rollout.result.decision) == (False, RolloutDecision.WORSE)
        assert busy.model_version.deployment is before
    assert busy.answers == [[2.0, 4.0, 6.0, 8.0]] * len(busy.answers)
    assert {seen.outcome for seen in busy.seen} == {"ok"}


@on_loop
async def test_a_candidate_that_can_not_be_loaded_leaves_all_as_it_was(tmp_path: Path) -> None:
    async with traffic(tmp_path) as busy:
        before = busy.model_version.deployment
        assert before is not None
        config = before.config.model_copy(update={"properties": {"NO_SUCH_PROPERTY": 1}})
        with pytest.raises(LoadFailed):
            await busy.catalog.roll_out(busy.model_version, config, rollout_of(Trial(None)).steer)
        assert busy.model_version.deployment is before
        assert busy.model_version.state is ModelState.READY


@on_loop
async def test_a_trial_that_is_stopped_is_rolled_back(tmp_path: Path) -> None:
    async with traffic(tmp_path) as busy:
        before, stop = busy.model_version.deployment, asyncio.Event()
        rollout = rollout_of(Trial(None, stages=(Stage(0.5, 10**9, 3600.0),)), stop)
        trying = asyncio.create_task(
            busy.catalog.roll_out(busy.model_version, candidate(busy.model_version), rollout.steer)
        )
        await until(lambda: busy.model_version.split is not None)
        stop.set()
        assert await trying is False
        assert (rollout.result.decision, busy.model_version.deployment) == (RolloutDecision.STOPPED, before)


@pytest.mark.parametrize(
    ("unready", "decision", "why"),
    [
        (("device lost", ""), RolloutDecision.FAILED, "device lost"),
        (("device lost", "device lost"), RolloutDecision.FAILED, "device lost"),
        (("", "device lost"), RolloutDecision.PROMOTED, "it did as well in service and measured better"),
    ],
)
@on_loop
async def test_a_side_that_does_not_answer_any_more_ends_it_at_once(
    tmp_path: Path, unready: tuple[str, str], decision: RolloutDecision, why: str
) -> None:
    async with traffic(tmp_path, clients=1) as busy:
        trial = Trial(None, stages=(Stage(0.5, 10**9, 3600.0),))
        rollout = Rollout(trial, asyncio.Event(), unready_reasons=lambda: unready)
        promoted = await busy.catalog.roll_out(busy.model_version, candidate(busy.model_version), rollout.steer)
        assert promoted is (decision is RolloutDecision.PROMOTED)
        assert rollout.result.decision is decision
        assert why in rollout.result.why


@on_loop
async def test_one_that_steers_badly_does_not_take_the_model_with_it(tmp_path: Path) -> None:
    async def stumble(_: TrafficSplit) -> bool:
        raise ZeroDivisionError

    async with traffic(tmp_path) as busy:
        before = busy.model_version.deployment
        with pytest.raises(ZeroDivisionError):
            await busy.catalog.roll_out(busy.model_version, candidate(busy.model_version), stumble)
        assert (busy.model_version.deployment, busy.model_version.split) == (before, None)


@on_loop
async def test_the_candidate_gets_its_share(tmp_path: Path) -> None:
    counts: list[Request] = []

    async def watch(split: TrafficSplit) -> bool:
        split.set_share(0.25)
        picked = [split.pick() is split.candidate for _ in range(100)]
        assert picked.count(True) == 25
        split.set_share(0.0)
        assert not any(split.pick() is split.candidate for _ in range(100))
        split.set_share(1.0)
        assert all(split.pick() is split.candidate for _ in range(100))
        return False

    async with traffic(tmp_path, clients=0) as busy:
        await busy.catalog.roll_out(busy.model_version, candidate(busy.model_version), watch)
    assert counts == []


@on_loop
async def test_a_version_that_does_not_answer_can_not_be_rolled_out(tmp_path: Path) -> None:
    async with traffic(tmp_path, clients=0) as busy:
        model_version = busy.model_version
        config = candidate(model_version)
        await busy.catalog.unload("m")
        with pytest.raises(ModelUnavailable):
            await busy.catalog.roll_out(model_version, config, rollout_of(Trial(None)).steer)


@on_loop
async def test_shadow_requests_are_answered_and_counted_nowhere(tmp_path: Path) -> None:
    async with traffic(tmp_path, clients=0) as busy:
        deployment = busy.model_version.deployment
        assert deployment is not None
        [output] = await answer(deployment.dispatcher, deployment.signature, [small.tensor([1, 2, 3, 4])])
        assert small.numbers(output).tolist() == [2, 4, 6, 8]
    assert busy.seen == []
