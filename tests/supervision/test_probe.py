"""Probes through real models' dispatchers: how each ends, and that nothing is counted."""

import asyncio
from pathlib import Path

import pytest

from inferd.catalog.catalog import Catalog
from inferd.deployment.deployment import Deployment
from inferd.deployment.loader import CatalogLimits
from inferd.engine.runtime import ov
from inferd.engine.source import ModelSource
from inferd.engine.warmup import synthetic_inputs
from inferd.errors import ModelUnavailable
from inferd.health.probes import ProbeOutcome
from inferd.repository.find import Repository
from inferd.requests import Observation
from inferd.rollout import synthetic_request
from inferd.scheduling.rules import QueueLimits
from inferd.supervision import probe
from inferd.tensors import DType, Signature, Tensor
from tests import models
from tests.engine.models import accumulator, engine, stateful
from tests.event_loop import on_loop
from tests.replies import ask
from tests.system.echo_models import picky, serial

SECONDS = 20.0


class House:
    """One model served; ``seen`` are the requests that were counted."""

    def __init__(self, root: Path) -> None:
        self.seen: list[Observation] = []
        limits = CatalogLimits(QueueLimits(1000, 1 << 30), 1, 30)
        self._catalog = Catalog(Repository(root), engine(), limits, observe=self.seen.append, changed=self._changed)

    async def _changed(self) -> None:
        """No listener in these tests."""

    async def __aenter__(self) -> Deployment:
        await self._catalog.load_all()
        return self._catalog.resolve("m", "")[1]

    async def __aexit__(self, *_: object) -> None:
        await self._catalog.close()


@pytest.mark.parametrize("dtype", [DType.INT64, DType.FP32, DType.BYTES])
def test_a_model_that_works_answers_well_and_nothing_is_counted(dtype: DType, tmp_path: Path) -> None:
    models.save(models.identity(dtype, [-1]), tmp_path, "m")

    @on_loop
    async def test() -> None:
        house = House(tmp_path)
        async with house as deployment:
            before = deployment.dispatcher.completed
            assert await probe.send(deployment, SECONDS) is ProbeOutcome.OK
            assert deployment.dispatcher.completed == before + 1
        assert house.seen == []

    test()


def test_a_model_that_was_unloaded_while_the_input_was_made_up_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save(models.identity(DType.FP32, [-1]), tmp_path, "m")

    @on_loop
    async def test() -> None:
        async with House(tmp_path) as deployment:
            loop = asyncio.get_running_loop()

            def unloaded_meanwhile(source: ModelSource, signature: Signature) -> tuple[Tensor, ...]:
                loop.call_soon_threadsafe(deployment.dispatcher.close)
                deployment.loaded.close()
                return synthetic_inputs(source, signature)

            monkeypatch.setattr(probe, "synthetic_inputs", unloaded_meanwhile)
            assert await probe.send(deployment, SECONDS) is ProbeOutcome.UNANSWERED
            with pytest.raises(ModelUnavailable, match="model 'm' is unloaded"):
                await synthetic_request.answer(
                    deployment.dispatcher,
                    deployment.signature,
                    synthetic_inputs(deployment.source, deployment.signature),
                )

    test()


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (accumulator(), "[batching]\nmax_size = 8\n[sequences.state.state]\noutput = 'next'\nbatch_axis = 1"),
        (stateful(), ""),
    ],
    ids=["declared", "its own"],
)
def test_a_model_with_state_is_asked_in_a_sequence_of_its_own(network: ov.Model, settings: str, tmp_path: Path) -> None:
    models.save(network, tmp_path, "m", settings=settings)

    @on_loop
    async def test() -> None:
        async with House(tmp_path) as deployment:
            assert deployment.signature.in_sequences
            for _ in range(3):
                assert await probe.send(deployment, SECONDS) is ProbeOutcome.OK
            assert deployment.dispatcher.scheduler.sequences == 0

    test()


@on_loop
async def test_a_model_that_can_not_run_on_made_up_input_fails(tmp_path: Path) -> None:
    models.save(picky(), tmp_path, "m", settings="[warmup]\nruns = 0")
    async with House(tmp_path) as deployment:
        assert await probe.send(deployment, SECONDS) is ProbeOutcome.FAILED


@on_loop
async def test_a_full_queue_says_nothing_of_the_model(tmp_path: Path) -> None:
    models.save(models.slow(), tmp_path, "m", settings=serial(1))
    async with House(tmp_path) as deployment:
        asked = [ask([1.0]) for _ in range(2)]
        for request, _ in asked:
            deployment.dispatcher.submit(request)
        assert await probe.send(deployment, SECONDS) is ProbeOutcome.UNANSWERED
        for request, _ in asked:
            deployment.dispatcher.cancel(request)
        await deployment.dispatcher.drained()


@on_loop
async def test_a_model_that_takes_too_long_is_told_to_let_it_go(tmp_path: Path) -> None:
    models.save(models.slow(), tmp_path, "m", settings=serial(1))
    async with House(tmp_path) as deployment:
        assert await probe.send(deployment, 0) is ProbeOutcome.UNANSWERED
        await deployment.dispatcher.drained()
        assert deployment.dispatcher.scheduler.in_flight == 0
