"""Where runs are computed changes while they are served, on real models, and no request is lost."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.deployment.traffic_split import TrafficSplit
from inferd.engine.runtime import ov
from inferd.health.inline_choice import BETWEEN, FIRST, LONGEST, LOOKS
from inferd.lifecycle import ModelState
from inferd.requests import Stages
from inferd.supervision import inline_runs
from inferd.supervision.inline_runs import InlineRuns
from tests.catalog.house import House
from tests.engine import models
from tests.event_loop import on_loop

# Nanoseconds that every run takes less than, and that none does.
AMPLE, NONE = 1e12, 1.0
# Without warm-up nothing was measured at the load, as on a machine that was too busy for it to mean anything.
UNMEASURED = "[warmup]\nruns = 0\n"


class Choosing:
    """Inline runs chosen for the model m of ``house``, on a clock that the test moves."""

    def __init__(self, house: House, most: float, free: Callable[[ModelVersion], bool] = lambda _: True) -> None:
        self.house = house
        self.told: list[bool] = []
        self.runs = InlineRuns(
            house.catalog,
            free=free,
            told=lambda _, inline: self.told.append(inline),
            most=most,
            clock=lambda: self.now,
        )
        self.now = 1000.0

    @property
    def deployment(self) -> Deployment:
        return self.house.catalog.resolve("m", "")[1]

    async def look(self, later: float = BETWEEN, times: int = 1) -> int:
        """So many looks, each ``later`` than the one before and after a request; how often runs were measured."""
        tried = 0
        for _ in range(times):
            self.now += later
            assert await self.house.times("m") == 2
            held = [(s, deployment) for s, deployment in self.house.catalog.loaded() if s.state is ModelState.READY]
            for work in self.runs.look(held):
                tried += 1
                await work
        return tried


@asynccontextmanager
async def choosing(
    root: Path,
    most: float,
    network: "ov.Model | None" = None,
    toml: str = UNMEASURED,
    **more: Callable[[ModelVersion], bool],
) -> AsyncIterator[Choosing]:
    async with House(root / "models") as house:
        house.put("m", network or models.scaled(2), toml)
        await house.catalog.load_all()
        choice = Choosing(house, most, **more)
        # The first look sees it for the first time.
        await choice.look()
        yield choice


async def at_once(_: TrafficSplit) -> bool:
    return True


async def made_inline(choice: Choosing) -> None:
    model_version, deployment = choice.house.catalog.resolve("m", "")
    assert await choice.house.catalog.roll_out(model_version, deployment.config, at_once, inline=True)
    assert choice.deployment.inline
    # Not before something is known to be worth measuring.
    choice.now += FIRST


@on_loop
async def test_runs_that_prove_quick_after_the_load_become_inline(tmp_path: Path) -> None:
    async with choosing(tmp_path, AMPLE) as choice:
        assert not choice.deployment.inline
        assert await choice.look(FIRST / 2) == 0
        with capture_logs() as logged:
            assert await choice.look(FIRST) == 1
        assert choice.deployment.inline
        assert choice.told == [True]
        [line] = [line for line in logged if line["event"] == "inline runs enabled"]
        assert (line["model"], line["version"]) == ("m", 1)
        assert 0 < line["took_us"] < line["most_us"]
        assert [line["inline"] for line in logged if line["event"] == "model ready"] == [True]
        assert await choice.house.times("m") == 2
        assert {seen.outcome for seen in choice.house.seen} == {"ok"}
        # As the model.toml says, so that a reload finds nothing changed.
        assert choice.deployment.config.execution.path == "auto"
        assert await choice.look(LONGEST, times=2 * LOOKS) == 0


def test_runs_that_prove_slow_stay_handed_over_and_are_tried_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(*_: object) -> Stages:
        return Stages(started=1, computed=1 + int(2 * AMPLE))

    monkeypatch.setattr(inline_runs, "timed", slow)

    @on_loop
    async def check() -> None:
        async with choosing(tmp_path, AMPLE) as choice:
            before = choice.deployment
            assert [await choice.look(FIRST) for _ in range(3)] == [1, 0, 1]
            assert (choice.deployment is before, choice.told) == (True, [])

    check()


@on_loop
async def test_inline_runs_that_take_long_are_handed_over(tmp_path: Path) -> None:
    async with choosing(tmp_path, NONE) as choice:
        await made_inline(choice)
        assert await choice.look(times=LOOKS - 1) == 0
        with capture_logs() as logged:
            assert await choice.look() == 1
        assert not choice.deployment.inline
        assert choice.told == [False]
        assert [line["model"] for line in logged if line["event"] == "inline runs disabled"] == ["m"]
        assert await choice.house.times("m") == 2
        assert {seen.outcome for seen in choice.house.seen} == {"ok"}
        assert await choice.look(FIRST, times=3) == 0


def test_inline_runs_that_only_look_slow_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def quick(*_: object) -> Stages:
        return Stages(started=1, computed=2)

    monkeypatch.setattr(inline_runs, "timed", quick)

    @on_loop
    async def check() -> None:
        async with choosing(tmp_path, NONE) as choice:
            await made_inline(choice)
            before = choice.deployment
            assert await choice.look(times=3 * LOOKS) == 1
            assert (choice.deployment is before, choice.told) == (True, [])

    check()


@pytest.mark.parametrize(
    ("network", "toml"),
    [
        (None, UNMEASURED + '[execution]\npath = "async"\n'),
        (None, UNMEASURED + "[execution]\nstreams = 2\n"),
        (None, UNMEASURED + "[execution]\ninfer_requests = 2\n"),
        (None, UNMEASURED + 'devices = ["CPU", "AUTO:CPU"]\n'),
        (models.scaled(2, [-1]), UNMEASURED),
    ],
    ids=["a path", "streams", "infer requests", "two devices", "open shapes"],
)
def test_what_is_not_left_open_stays_as_it_is(network: "ov.Model | None", toml: str, tmp_path: Path) -> None:
    @on_loop
    async def check() -> None:
        # A top-level key goes before any table.
        settings = "\n".join(sorted(toml.splitlines(), key=lambda line: not line.startswith("devices")))
        async with choosing(tmp_path, AMPLE, network, settings) as choice:
            assert await choice.look(LONGEST, times=3) == 0
            assert not choice.deployment.inline

    check()


@on_loop
async def test_what_somebody_else_decides_on_is_left_to_them(tmp_path: Path) -> None:
    async with choosing(tmp_path, AMPLE, free=lambda _: False) as choice:
        assert await choice.look(LONGEST, times=3) == 0
        assert not choice.deployment.inline


@on_loop
async def test_a_changed_model_starts_over_and_one_that_can_not_be_loaded_stays(tmp_path: Path) -> None:
    async with choosing(tmp_path, AMPLE) as choice:
        before = choice.deployment
        (tmp_path / "models" / "m" / "1" / "model.xml").write_text("no model")
        assert await choice.look(FIRST) == 1
        assert (choice.deployment is before, choice.told) == (True, [])
        choice.house.put("m", models.scaled(2), UNMEASURED)
        await choice.house.catalog.load("m")
        assert await choice.look(0.0) == 0
        assert await choice.look(FIRST) == 1
        assert choice.deployment.inline
