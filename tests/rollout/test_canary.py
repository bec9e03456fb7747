"""A new version takes over by way of a check and, where that is wanted, a part of the requests first."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from inferd.deployment.traffic_split import TrafficSplit
from inferd.engine.runtime import ov
from inferd.errors import LoadFailed, RolloutRejected
from inferd.requests import Observation, Stages
from inferd.tensors import DType
from tests.catalog.house import House
from tests.engine import models
from tests.engine.models import op, tensor
from tests.event_loop import on_loop, until

NO_WARMUP = "[warmup]\nruns = 0\n"
# Decided soon where nothing speaks against it, and only by what is seen.
SHORT = NO_WARMUP + "[rollout]\ncanary_share = 0.5\ncanary_duration = 1.0\ncanary_requests = 30"
LONG = NO_WARMUP + "[rollout]\ncanary_share = 0.5\ncanary_duration = 3600.0"
SOUND, UNSOUND = tensor([2, 4], DType.INT64), tensor([2, 5], DType.INT64)


def nan() -> ov.Model:
    """Gives NaN for whatever it gets."""
    x = models.parameter((4,))
    below = op.subtract(op.multiply(x, op.constant(np.float32(0))), op.constant(np.float32(1)))
    return models.model({"y": op.sqrt(below)}, [x])


def tolerant() -> ov.Model:
    """Takes what :func:`models.broadcasting` takes, and never raises."""
    x, to = models.parameter([4]), models.parameter([2], ov.Type.i64, "to")
    first = op.gather(to, op.constant([0]), op.constant(0))
    return models.model({"y": op.broadcast(x, op.concat([first, op.constant([4])], 0))}, [x, to])


@asynccontextmanager
async def trying(house: House) -> AsyncIterator["asyncio.Task[None]"]:
    """A load of what "m" is on disk now, which has come to its canary."""
    loading = asyncio.create_task(house.catalog.load("m"))
    await until(lambda: loading.done() or "of the requests" in "".join(e.reason for e in house.catalog.index()))
    assert not loading.done()
    yield loading
    await asyncio.wait([loading])


async def asked(house: House, loading: "asyncio.Task[None]", version: str = "") -> Counter[float]:
    """What is answered, and how often, to one request after the other until ``loading`` has ended."""
    seen: Counter[float] = Counter()
    while not loading.done():
        seen[await house.times("m", version)] += 1
        await asyncio.sleep(0)
    return seen


def split(house: House) -> TrafficSplit:
    """The two that share the requests to version 1."""
    found = house.catalog.find("m", "1")[0].split
    assert found is not None
    return found


# -- the check -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "settings", "problem"),
    [
        (nan(), "", "output 'y' has NaN or infinity where the version before has numbers"),
        (models.scaled(3), "[rollout]\ntolerance = 0.01", "output 'y': is off by"),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
@on_loop
async def test_what_does_not_answer_soundly_is_a_failed_load(
    tmp_path: Path, new: ov.Model, settings: str, problem: str, number: int
) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", new, settings, number)
        with pytest.raises(LoadFailed, match=f"version {number} failed to load: it is not fit to take over: {problem}"):
            await house.catalog.load("m")
        assert await house.times("m") == 2
        assert problem in next(e.reason for e in house.catalog.index() if e.version == str(number))
        assert house.catalog.loads == {("m", "ok"): 1, ("m", "failed"): 1}
        assert house.catalog.rollbacks == {}


@on_loop
async def test_the_check_can_be_switched_off(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", nan(), '[rollout]\ncheck = "off"')
        await house.catalog.load("m")
        assert np.isnan(await house.times("m"))


@on_loop
async def test_what_comes_first_is_held_against_nothing(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", nan(), SHORT)
        await house.catalog.load_all()
        assert np.isnan(await house.times("m"))


@on_loop
async def test_what_clients_sent_to_the_one_before_the_last_is_asked_too(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", tolerant(), NO_WARMUP)
        await house.catalog.load_all()
        await house.submit("m", [1, 2, 3, 4], UNSOUND).ended()
        await house.catalog.load("m")
        house.put("m", models.broadcasting(), NO_WARMUP, 2)
        with pytest.raises(LoadFailed, match="it does not answer what clients send"):
            await house.catalog.load("m")


# -- promoted ------------------------------------------------------------------------


@on_loop
async def test_a_new_version_shares_the_requests_and_then_has_them_all(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", models.scaled(3), SHORT, 2)
        async with trying(house) as loading:
            assert house.index() == [("m", "1", "READY"), ("m", "2", "READY")]
            # By its number each answers alone.
            assert [await house.times("m", version) for version in "1122"] == [2, 2, 3, 3]
            assert {house.catalog.find("m", "")[0].version for _ in range(4)} == {1}
            assert Counter([await house.times("m") for _ in range(10)]) == {2: 5, 3: 5}
            seen = await asked(house, loading)
        await loading
        assert set(seen) <= {2, 3}
        assert house.index() == [("m", "2", "READY")]
        assert house.reason("m") == ""
        assert [await house.times("m") for _ in range(4)] == [3] * 4
        assert {o.outcome for o in house.seen} == {"ok"}
        assert (house.catalog.loads, house.catalog.rollbacks) == ({("m", "ok"): 2}, {})


@on_loop
async def test_a_changed_version_shares_also_those_to_its_number(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        pools = house.pools("m")
        house.put("m", models.scaled(3), SHORT)
        async with trying(house) as loading:
            assert Counter([await house.times("m", "1") for _ in range(10)]) == {2: 5, 3: 5}
            assert Counter([await house.times("m") for _ in range(10)]) == {2: 5, 3: 5}
            await asked(house, loading, "1")
        await loading
        assert house.index() == [("m", "1", "READY")]
        assert house.reason("m") == ""
        assert [await house.times("m") for _ in range(4)] == [3] * 4
        assert all(pool is None or not pool.in_flight for pool in (reference() for reference in pools))


@on_loop
async def test_one_that_nobody_asks_takes_over_in_the_end(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", models.scaled(3), SHORT.replace("1.0", "0.1"), 2)
        await house.catalog.load("m")
        assert house.index() == [("m", "2", "READY")]


@on_loop
async def test_what_has_not_changed_needs_no_canary(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2), LONG)
        await house.catalog.load_all()
        before = house.catalog.find("m", "")[1]
        await house.catalog.load("m")
        assert house.catalog.find("m", "")[1] is not before


@on_loop
async def test_how_a_version_is_brought_into_service_makes_it_no_other_one(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        before = house.catalog.find("m", "")[1]
        (tmp_path / "m" / "model.toml").write_text("[rollout]\ncanary_share = 0.5\ncanary_duration = 3600.0")
        await house.catalog.reload()
        assert house.catalog.find("m", "")[1] is before
        # By what is said of it now.
        house.put("m", models.scaled(3), "[rollout]\ncanary_share = 0.0")
        await house.catalog.load("m")
        assert await house.times("m") == 3


@on_loop
async def test_models_in_sequences_take_over_at_once(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.stateful())
        await house.catalog.load_all()
        house.put("m", models.stateful(), LONG, 2)
        await house.catalog.load("m")
        assert house.index() == [("m", "2", "READY")]


@on_loop
async def test_what_takes_other_input_can_not_share_the_requests(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", models.scaled(3, (2, 2)), LONG, 2)
        with pytest.raises(LoadFailed, match=r"can't share requests with version 1: its input 'x' .*canary_share = 0"):
            await house.catalog.load("m")
        assert house.index() == [("m", "1", "READY"), ("m", "2", "UNAVAILABLE")]


# -- rolled back ---------------------------------------------------------------------


async def failing(house: House, number: int) -> None:
    """ "m" raises for UNSOUND input from now on, and did not before."""
    house.put("m", tolerant(), NO_WARMUP)
    await house.catalog.load_all()
    await house.submit("m", [1, 2, 3, 4], SOUND).ended()
    house.put("m", models.broadcasting(), LONG, number)


@pytest.mark.parametrize("number", [1, 2])
@on_loop
async def test_one_that_fails_more_is_rolled_back_and_is_not_tried_again_by_itself(tmp_path: Path, number: int) -> None:
    async with House(tmp_path) as house:
        await failing(house, number)
        answers = []
        async with trying(house) as loading:
            while not loading.done():
                answers.append(await house.submit("m", [1, 2, 3, 4], UNSOUND).ended())
                await asyncio.sleep(0)
        with pytest.raises(RolloutRejected, match="rollout rejected \\(failed\\): of its requests"):
            await loading
        failed = [answer for answer in answers if answer.error is not None]
        assert 0 < len(failed) <= (len(answers) + 1) // 2
        assert ("m", "1", "READY") in house.index()
        assert (("m", "2", "UNAVAILABLE") in house.index()) == (number == 2)
        assert "failed" in next(e.reason for e in house.catalog.index() if e.version == str(number))
        assert all(e.desired for e in house.catalog.index())
        assert house.catalog.rollbacks == {("m", str(number), "failed"): 1}
        assert {(await house.submit("m", [1, 2, 3, 4], UNSOUND).ended()).error for _ in range(4)} == {None}

        index, loads = house.index(), house.catalog.loads.copy()
        await house.catalog.reload()
        assert (house.index(), house.catalog.loads) == (index, loads)
        # Who asks for it gets it tried again.
        async with trying(house) as loading:
            await house.catalog.unload("m")
        with pytest.raises(RolloutRejected, match="stopped"):
            await loading


@on_loop
async def test_who_asks_for_the_same_meanwhile_gets_the_same_answer(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await failing(house, 2)
        async with trying(house) as loading:
            again = asyncio.create_task(house.catalog.load("m"))
            await until(lambda: bool(house.catalog._lock("m")._waiters))
            while not loading.done():
                await house.submit("m", [1, 2, 3, 4], UNSOUND).ended()
                await asyncio.sleep(0)
        await asyncio.wait([again])
        assert str(again.exception()) == str(loading.exception())
        assert house.catalog.rollbacks == {("m", "2", "failed"): 1}


@on_loop
async def test_one_that_was_rolled_back_is_tried_again_once_it_has_changed(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await failing(house, 2)
        async with trying(house) as loading:
            while not loading.done():
                await house.submit("m", [1, 2, 3, 4], UNSOUND).ended()
                await asyncio.sleep(0)
        house.put("m", tolerant(), NO_WARMUP, 2)
        await house.catalog.reload()
        assert house.index() == [("m", "2", "READY")]


@on_loop
async def test_one_that_was_rolled_back_is_better_than_none(tmp_path: Path) -> None:
    async with House(tmp_path / "models") as house:
        await failing(house, 2)
        async with trying(house) as loading:
            while not loading.done():
                await house.submit("m", [1, 2, 3, 4], UNSOUND).ended()
                await asyncio.sleep(0)
        (tmp_path / "models" / "m").rename(tmp_path / "kept")
        await house.catalog.reload()
        (tmp_path / "kept").rename(tmp_path / "models" / "m")
        await house.catalog.reload()
        assert house.index() == [("m", "2", "READY")]


def seen(milliseconds: float) -> Observation:
    """A request that was answered so long after it came."""
    return Observation("m", "1", "ok", Stages(received=1, answered=1 + int(milliseconds * 1e6)))


@pytest.mark.parametrize(("settings", "candidate", "kept"), [(LONG, 200.0, 2), (SHORT, 20.0, 3)])
@on_loop
async def test_one_that_misses_the_objective_is_rolled_back(
    tmp_path: Path, settings: str, candidate: float, kept: float
) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", models.scaled(3), settings + "\n[objective]\nlatency_slo = 0.1")
        async with trying(house) as loading:
            await until(lambda: split(house).candidate.dispatcher.on_observation is not None)
            incumbent, tried = (
                side.dispatcher.on_observation for side in (split(house).incumbent, split(house).candidate)
            )
            assert incumbent is not None
            assert tried is not None
            for _ in range(50):
                incumbent(seen(20.0))
                tried(seen(candidate))
        assert isinstance(loading.exception(), RolloutRejected) == (kept == 2)
        assert house.catalog.rollbacks == ({("m", "1", "worse"): 1} if kept == 2 else {})
        assert await house.times("m") == kept


@on_loop
async def test_another_change_does_not_wait_for_what_is_tried(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", models.scaled(3), LONG, 2)
        async with trying(house) as loading:
            house.put("m", models.scaled(4), "", 2)
            await house.catalog.load("m")
        assert isinstance(loading.exception(), RolloutRejected)
        assert await house.times("m") == 4
        assert house.index() == [("m", "2", "READY")]
        assert house.catalog.rollbacks == {("m", "2", "stopped"): 1}


@on_loop
async def test_what_is_unloaded_while_it_is_tried_stays_unloaded(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", models.scaled(3), LONG, 2)
        async with trying(house):
            await house.catalog.unload("m")
        assert house.index() == [("m", "1", "UNAVAILABLE"), ("m", "2", "UNAVAILABLE")]
        await house.catalog.reload()
        assert house.index() == [("m", "1", "UNAVAILABLE"), ("m", "2", "UNAVAILABLE")]


@on_loop
async def test_a_reload_waits_for_no_canary_and_leaves_it_alone(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", models.scaled(3), LONG, 2)
        await house.catalog.reload()
        index = [("m", "1", "READY"), ("m", "2", "READY")]
        assert house.index() == index
        await house.catalog.reload()
        assert house.index() == index
        assert house.catalog.loads == {("m", "ok"): 2}
        # What it is given it answers before the end.
        accepted = [house.submit("m") for _ in range(4)]
        assert await house.catalog.drain(10)
        assert [answer.error for answer in accepted] == [None] * 4
        await house.catalog.close()
        assert house.catalog.rollbacks == {("m", "2", "stopped"): 1}
