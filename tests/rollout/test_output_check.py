"""A new version accepts the requests of the current one and gives equivalent, sound outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferd.deployment.deployment import Deployment
from inferd.engine.runtime import ov
from inferd.rollout.output_check import output_mismatch, signature_mismatch
from inferd.tensors import Dim, DType, Signature, TensorSpec
from tests.catalog.house import House
from tests.engine import models
from tests.engine.models import op, tensor
from tests.event_loop import on_loop


def spoiling(where: Callable[[Any], Any]) -> ov.Model:
    """Gives twice what it gets, and NaN where ``where`` gives something below 0."""
    x = models.parameter((4,))
    return models.model({"y": op.add(op.multiply(x, op.constant(np.float32(2))), op.sqrt(where(x)))}, [x])


NEVER = spoiling(lambda x: op.multiply(x, op.constant(np.float32(0))))
ALWAYS = spoiling(lambda x: op.subtract(op.multiply(x, op.constant(np.float32(0))), op.constant(np.float32(1))))
# Not for the floats of 0..1 that input is made up of.
ABOVE_TWO = spoiling(lambda x: op.subtract(op.constant(np.float32(2)), x))


class Pair:
    """Two models served side by side, as if one were to take the other's place."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def serve(self, old: ov.Model, new: ov.Model) -> None:
        # Made-up input need not be what a model can compute.
        self.house.put("old", old, "[warmup]\nruns = 0")
        self.house.put("new", new, "[warmup]\nruns = 0")
        await self.house.catalog.load_all()

    def deployment(self, name: str) -> Deployment:
        return self.house.catalog.find(name, "")[1]

    async def output_mismatch(self, tolerance: float | None = None) -> str:
        return await output_mismatch(self.deployment("old"), self.deployment("new"), tolerance)


@pytest.mark.parametrize(
    ("old", "new", "tolerance", "problem"),
    [
        (NEVER, models.scaled(2), None, ""),
        (models.scaled(2), models.scaled(3), None, ""),
        (models.scaled(2), models.scaled(3), 0.1, "output 'y': is off by"),
        (models.scaled(2), models.scaled(2.001), 0.01, ""),
        (models.scaled(2), ALWAYS, None, "output 'y' has NaN or infinity where the current version has numbers"),
        (ALWAYS, models.scaled(2), None, ""),
        (ALWAYS, ALWAYS, None, ""),
        # Another signature: there is nothing to hold it against.
        (models.scaled(2), models.scaled(2, (2, 2)), None, ""),
        (models.scaled(2), models.identity(name="z"), 0.1, ""),
    ],
)
@on_loop
async def test_made_up_input_is_answered_soundly(
    tmp_path: Path, old: ov.Model, new: ov.Model, tolerance: float | None, problem: str
) -> None:
    async with House(tmp_path) as house:
        pair = Pair(house)
        await pair.serve(old, new)
        said = await pair.output_mismatch(tolerance)
        assert said.startswith(problem)
        assert bool(said) == bool(problem)
        assert house.seen == []


@on_loop
async def test_what_clients_sent_lately_is_asked(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        pair = Pair(house)
        await pair.serve(models.scaled(2), ABOVE_TWO)
        assert await pair.output_mismatch() == ""
        await house.submit("old", [1, 2, 3, 4]).ended()
        assert "has NaN or infinity" in await pair.output_mismatch()


def tolerant() -> ov.Model:
    """Takes what :func:`models.broadcasting` takes, and never raises."""
    x, to = models.parameter([4]), models.parameter([2], ov.Type.i64, "to")
    first = op.gather(to, op.constant([0]), op.constant(0))
    return models.model({"y": op.broadcast(x, op.concat([first, op.constant([4])], 0))}, [x, to])


@on_loop
async def test_it_answers_what_clients_sent_lately(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        pair = Pair(house)
        await pair.serve(tolerant(), models.broadcasting())
        good, bad = tensor([2, 4], DType.INT64), tensor([2, 5], DType.INT64)
        await house.submit("old", [1, 2, 3, 4], good).ended()
        assert await pair.output_mismatch() == ""
        pair.deployment("old").dispatcher.samples.append((tensor([1, 2, 3, 4]), bad))
        assert (await pair.output_mismatch()).startswith("it fails on recent client inputs")


@on_loop
async def test_what_neither_can_compute_says_nothing(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        pair = Pair(house)
        await pair.serve(models.broadcasting(), models.broadcasting())
        await house.submit("old", [1, 2, 3, 4], tensor([2, 5], DType.INT64)).ended()
        assert await pair.output_mismatch() == ""


@on_loop
async def test_models_in_sequences_are_asked_too(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        pair = Pair(house)
        await pair.serve(models.stateful(), models.stateful())
        assert await pair.output_mismatch() == ""
        assert pair.deployment("new").dispatcher.scheduler.sequences == 0


# -- what it takes and gives ---------------------------------------------------------


def spec(name: str, *dims: int | tuple[int, int | None], dtype: DType = DType.FP32, aliases: str = "") -> TensorSpec:
    bounds = tuple(Dim(d, d) if isinstance(d, int) else Dim(*d) for d in dims)
    return TensorSpec(name, dtype, bounds, frozenset(aliases.split()))


OLD = Signature((spec("x", (1, 8), 4),), (spec("y", (1, 8), 2),), max_batch=8)


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (OLD, ""),
        (Signature((spec("x", (0, None), 4),), (spec("y", 3), spec("z", 1)), max_batch=9), ""),
        (Signature((TensorSpec("x", DType.FP32, None),), (spec("y", (1, 8), 2),), max_batch=8), ""),
        (Signature((spec("x", (1, 8), 4),), (spec("n", (1, 8), 2, aliases="y"),), max_batch=8), ""),
        (Signature((spec("x", (1, 4), 4),), OLD.outputs, max_batch=8), "its input 'x' takes [1..4,4], not [1..8,4]"),
        (Signature((spec("x", (1, 8), 4, 1),), OLD.outputs, max_batch=8), "its input 'x' takes [1..8,4,1]"),
        (Signature((spec("x", (1, 8), 4, dtype=DType.INT8),), OLD.outputs, max_batch=8), "its input 'x' is INT8"),
        (Signature((*OLD.inputs, spec("more", 1)), OLD.outputs, max_batch=8), "it needs an input 'more'"),
        (Signature((), OLD.outputs, max_batch=8), "it has no input 'x'"),
        (Signature(OLD.inputs, (spec("z", 1),), max_batch=8), "it has no output 'y'"),
        (Signature(OLD.inputs, (spec("y", 2, dtype=DType.FP16),), max_batch=8), "its output 'y' is FP16, not FP32"),
        (Signature(OLD.inputs, OLD.outputs, max_batch=4), "it takes 4 rows, not 8"),
    ],
)
def test_requests_go_to_the_version_that_takes_all_of_them(new: Signature, problem: str) -> None:
    said = signature_mismatch(OLD, new)
    assert said.startswith(problem)
    assert bool(said) == bool(problem)
