"""The tuner in a daemon: what it does by itself, when it holds back, and how it drops a bad candidate."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs

from inferd.catalog.catalog import Catalog
from inferd.deployment.loader import CatalogLimits
from inferd.deployment.traffic_split import TrafficSplit
from inferd.engine.cache import BlobCache
from inferd.engine.model import Engine
from inferd.engine.runtime import ov
from inferd.errors import InvalidRequest, UnknownModel
from inferd.repository.find import Repository
from inferd.requests import Observation
from inferd.rollout.trial import Stage
from inferd.scheduling.rules import QueueLimits
from inferd.tuner.conditions import Conditions
from inferd.tuner.operator_commands import OperatorCommands
from inferd.tuner.profile import Profile, ProfilePoint, Profiles
from inferd.tuner.record import TuningDecision, TuningPhase, TuningRecord, TuningStatus
from inferd.tuner.records import TuningRecords
from inferd.tuner.rules import TunerRules
from inferd.tuner.tuner import Tuner
from inferd.tuning.candidates import Candidate
from inferd.tuning.drift import Drift, LoadSample
from tests import models
from tests.engine import models as small
from tests.event_loop import on_loop, until
from tests.replies import ask
from tests.rollout.test_rollout import Substituting, three
from tests.tuning.probes import kill, probes

STAGES = (Stage(0.0, 20, 0.2), Stage(0.5, 20, 30.0))
CALM = Conditions(0.0, 0.9)
# Recognised by its three infer requests.
OTHER = Candidate(1, 2, 3, pinning=True)


class Workshop:
    """A tuner and the catalog it works on, around one model."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["off", "start", "online"] = "start",
        conditions: Callable[[], Conditions] = lambda: CALM,
        instead: Path | None = None,
        threads: int = 2,
        budget: float = 2.0,
    ) -> None:
        cache = BlobCache(folder / "cache", 1 << 30)
        engine = Substituting(threads, cache, instead, three) if instead else Engine(threads, cache)
        self.profiles = Profiles(folder / "profiles")
        rules = TunerRules(mode, budget, threads, folder / "cache", 1 << 30, STAGES)
        self.records = TuningRecords(engine, self.profiles)
        self.seen: list[Observation] = []
        limits = CatalogLimits(QueueLimits(1000, 1 << 30), 1, 10.0)
        self.catalog = Catalog(
            Repository(folder / "repository"),
            engine,
            limits,
            observe=self.seen.append,
            changed=self._changed,
            tuned=self.records.tuned,
        )
        self.tuner = Tuner(rules, self.records, self.catalog, read_conditions=conditions)
        self.commands = OperatorCommands(self.tuner)

    async def _changed(self) -> None:
        return

    @property
    def record(self) -> TuningRecord:
        return self.records.of("m", "")

    @property
    def infer_requests(self) -> int:
        _, deployment = self.catalog.resolve("m", "")
        return deployment.loaded.pools[0].pool.size

    async def answer(self) -> list[float]:
        _, deployment = self.catalog.resolve("m", "")
        request, reply = ask([1, 2, 3, 4])
        request.stages.received = time.monotonic_ns()
        deployment.dispatcher.submit(request)
        return (await reply.ended()).outputs[0].tolist()  # type: ignore[no-any-return]


def repository(folder: Path, network: "ov.Model | None" = None, settings: str = "") -> Path:
    # Of no fixed shape, or it would run inline and leave nothing to tune.
    models.save(network or small.scaled(2, [-1]), folder / "repository", "m", settings=settings)
    return folder


@asynccontextmanager
async def workshop(folder: Path, **more: Any) -> AsyncIterator[Workshop]:
    shop = Workshop(folder, **more)
    await shop.catalog.load_all()
    try:
        yield shop
    finally:
        await shop.tuner.stop()
        await shop.catalog.close()


def profile(shop: Workshop, winner: Candidate = OTHER, **more: Any) -> Profile:
    """As a search would have found it, for the model as it is now."""
    point = ProfilePoint(winner, 4, 400, 1000.0, 950.0, 1050.0, 1000.0, 0.001, 0.002, True)
    found = Profile(
        "m", 1, "CPU", shop.record.key, winner, "made up", 0.01, 99.0, False, 1.0,
        "2026-01-01T00:00:00+00:00", {"the THROUGHPUT hint's answer": 1.25}, (point,),
    )  # fmt: skip
    return replace(found, **more)


# -- by itself ------------------------------------------------------------------------


@on_loop
async def test_a_model_without_a_profile_is_tuned_while_serving_and_the_next_start_needs_no_search(
    tmp_path: Path,
) -> None:
    async with workshop(repository(tmp_path)) as shop:
        assert await shop.answer() == [2, 4, 6, 8]
        shop.tuner.start()
        await until(lambda: bool(shop.record.decisions))
        found = shop.record.profile
        assert found is not None
        assert (tmp_path / "profiles" / "m" / "1.CPU.json").is_file()
        assert (shop.record.phase, found.winner) == (TuningPhase.SETTLED, shop.record.candidate)
        assert shop.record.seconds > 0
        assert await shop.answer() == [2, 4, 6, 8]
    async with workshop(tmp_path) as again:
        assert again.record.profile == found
        assert again.infer_requests == found.winner.requests
        assert (again.record.phase, again.record.decisions) == (TuningPhase.SETTLED, {})


@on_loop
async def test_a_stored_profile_is_verified_by_a_short_look_and_not_searched_again(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        # So slow that whatever it does now is more.
        slow = replace(profile(shop).points[0], throughput=0.001)
        shop.profiles.store(profile(shop, points=(slow,)))
    with capture_logs() as logged:
        async with workshop(tmp_path) as again:
            assert again.infer_requests == 3
            again.tuner.start()
            await until(lambda: again.record.verified and again.record.phase is TuningPhase.SETTLED)
            assert not again.record.decisions
    assert "tuning" not in [line["event"] for line in logged]


@on_loop
async def test_a_profile_that_promises_too_much_is_tuned_again(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        boast = replace(profile(shop).points[0], throughput=1e12)
        shop.profiles.store(profile(shop, points=(boast,)))
    async with workshop(tmp_path) as again:
        again.tuner.start()
        await until(lambda: bool(again.record.decisions))
        assert again.record.profile is not None
        assert again.record.profile.reason != "made up"


@pytest.mark.parametrize("what", ["a byte of the model", "the CPU threads", "the objective"])
def test_a_profile_for_something_else_is_not_used(what: str, tmp_path: Path) -> None:
    @on_loop
    async def check() -> None:
        async with workshop(repository(tmp_path)) as shop:
            shop.profiles.store(profile(shop))
        if what == "a byte of the model":
            file = tmp_path / "repository" / "m" / "1" / "model.xml"
            # A letter of the model's own name, which changes nothing else.
            file.write_text(file.read_text().replace('name="small"', 'name="smalk"', 1))
        if what == "the objective":
            (tmp_path / "repository" / "m" / "model.toml").write_text("[objective]\nlatency_slo = 0.5\n")
        with capture_logs() as logged:
            async with workshop(tmp_path, threads=1 if what == "the CPU threads" else 2) as again:
                assert again.record.profile is None
                assert again.infer_requests != 3
        [line] = [line for line in logged if line["event"] == "profile ignored: conditions differ"]
        key = {"a byte of the model": "model", "the CPU threads": "CPU threads", "the objective": "objective"}[what]
        assert line["differs"].startswith(f"{key}: ")

    check()


@on_loop
async def test_nothing_is_tuned_while_the_machine_is_busy_and_nothing_is_lost_by_it(tmp_path: Path) -> None:
    now = Conditions(95.0, 0.9)
    async with workshop(repository(tmp_path), conditions=lambda: now) as shop:
        shop.tuner.start()
        await until(lambda: "CPU pressure" in shop.record.status_text)
        assert shop.record.phase is TuningPhase.WANTED
        assert await shop.answer() == [2, 4, 6, 8]
        now = CALM
        shop.commands.request_tuning(shop.record)
        await until(lambda: shop.record.phase is TuningPhase.SEARCHING)
        assert shop.record.status_text == "requested by an operator"
        await until(lambda: bool(shop.record.decisions))


@on_loop
async def test_memory_that_runs_short_ends_a_search(tmp_path: Path) -> None:
    looks = iter([CALM, CALM, CALM])
    async with workshop(repository(tmp_path), conditions=lambda: next(looks, Conditions(0.0, 0.01))) as shop:
        shop.tuner.start()
        await until(lambda: "of memory is available" in shop.record.status_text)
        assert (shop.record.phase, shop.record.profile) == (TuningPhase.WANTED, None)


@on_loop
async def test_stopping_ends_a_search_at_once(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        shop.tuner.start()
        await until(lambda: shop.record.progress is not None)
        await shop.tuner.stop()
        assert (shop.record.phase, shop.record.profile) == (TuningPhase.WANTED, None)
        assert await shop.answer() == [2, 4, 6, 8]


@on_loop
async def test_a_process_that_measures_and_is_killed_ends_a_measurement_and_nothing_else(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path, settings='[execution]\npath = "async"')) as shop:
        shop.tuner.start()
        await until(lambda: shop.record.progress is not None)
        killed = probes()
        for child in killed:
            kill(child)
        assert await shop.answer() == [2, 4, 6, 8]
        # Measuring goes on in another, unless there is nothing left to measure.
        await until(lambda: bool(shop.record.decisions or probes() - killed))
        assert await shop.answer() == [2, 4, 6, 8]
        assert [seen.outcome for seen in shop.seen] == ["ok"] * 2
        assert shop.catalog.ready("m", "")
    assert killed
    assert probes() == set()


@on_loop
async def test_a_load_that_changed_for_good_starts_a_tuning_where_that_is_asked_for(tmp_path: Path) -> None:
    for mode, phase in (("start", TuningPhase.SETTLED), ("online", TuningPhase.WANTED)):
        folder = repository(tmp_path / mode)
        async with workshop(folder, mode=mode) as shop:
            shop.profiles.store(profile(shop))
        async with workshop(folder, mode=mode) as again:
            record = again.record
            record.verified, record.seen, record.drift = True, (1.0, 0), Drift()
            # As it was after the last tuning: runs of a quarter of an hour.
            record.drift.observe(LoadSample(1e12, 1.0))
            for _ in range(8):
                await again.answer()
                again.tuner._next_record()
            assert record.phase is phase


# -- what becomes of what was found -----------------------------------------------------


async def adopted(shop: Workshop, **more: Any) -> TuningRecord:
    record = shop.record
    record.move(TuningPhase.WANTED)
    record.move(TuningPhase.SEARCHING)
    await shop.tuner.promotion.apply(record, profile(shop, **more))
    return record


async def asked(shop: Workshop, stop: asyncio.Event) -> None:
    while not stop.is_set():
        assert await shop.answer() == [2, 4, 6, 8]


@on_loop
async def test_a_better_candidate_is_promoted_under_load_and_counted(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path, settings="[objective]\nlatency_slo = 10.0\n")) as shop:
        stop = asyncio.Event()
        client = asyncio.create_task(asked(shop, stop))
        record = await adopted(shop)
        stop.set()
        await client
        assert record.decisions == {TuningDecision.PROMOTED: 1}
        assert (shop.infer_requests, record.gain) == (3, 1.25)
        assert {seen.outcome for seen in shop.seen} == {"ok"}
    assert shop.profiles.stored("m", 1, "CPU") == record.profile


@on_loop
async def test_a_candidate_with_wrong_answers_is_rolled_back_counted_and_not_tried_at_the_next_start(
    tmp_path: Path,
) -> None:
    wrong = small.save(small.scaled(2.5, [-1]), tmp_path / "wrong")
    async with workshop(repository(tmp_path), instead=wrong) as shop:
        before = shop.infer_requests
        record = await adopted(shop)
        assert record.decisions == {TuningDecision.WRONG_OUTPUT: 1}
        assert (shop.infer_requests, await shop.answer()) == (before, [2, 4, 6, 8])
        assert "was rolled back: output 0 is off by" in record.profile.reason  # type: ignore[union-attr]
    async with workshop(tmp_path) as again:
        assert again.infer_requests == before


@on_loop
async def test_a_candidate_that_can_not_be_loaded_is_rolled_back(tmp_path: Path) -> None:
    broken = tmp_path / "broken.xml"
    broken.write_text("no model")
    async with workshop(repository(tmp_path), instead=broken) as shop:
        record = await adopted(shop)
        assert record.decisions == {TuningDecision.FAILED: 1}
        assert await shop.answer() == [2, 4, 6, 8]


@on_loop
async def test_what_is_served_already_is_kept(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        shop.profiles.store(profile(shop))
    async with workshop(tmp_path) as again:
        assert (await adopted(again)).decisions == {TuningDecision.KEPT: 1}
        assert again.infer_requests == 3


@on_loop
async def test_a_choice_for_a_model_that_was_reloaded_meanwhile_is_dropped(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        old = shop.record
        await shop.catalog.load("m")
        old.move(TuningPhase.WANTED)
        old.move(TuningPhase.SEARCHING)
        await shop.tuner.promotion.apply(old, profile(shop))
        assert (old.decisions, shop.record.profile) == ({TuningDecision.STOPPED: 1}, None)
        assert shop.profiles.stored("m", 1, "CPU") is None


@on_loop
async def test_a_model_in_sequences_takes_it_up_at_its_next_load(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path, small.stateful())) as shop:
        before = shop.catalog.resolve("m", "")[1]
        record = await adopted(shop, winner=Candidate(1, 2, 1, pinning=True))
        assert record.decisions == {TuningDecision.STORED: 1}
        assert shop.catalog.resolve("m", "")[1] is before
    async with workshop(tmp_path) as again:
        assert again.catalog.resolve("m", "")[1].loaded.pools[0].pool.width == 1


# -- what people ask for ----------------------------------------------------------------


def three_models(folder: Path) -> Path:
    for name in ("a", "b", "c"):
        models.save(small.scaled(2, [-1]), folder / "repository", name)
    return folder


@on_loop
async def test_what_is_asked_for_goes_first_in_the_order_of_asking_and_is_waited_for(tmp_path: Path) -> None:
    async with workshop(three_models(tmp_path)) as shop:
        tuner = shop.tuner
        a, b, c = (shop.records.of(name, "") for name in "abc")
        assert tuner._next_record() is a
        assert shop.commands.request_tuning(c) == "it is tuned next, once conditions allow"
        assert shop.commands.request_tuning(b) == "it is tuned after 1 earlier requests, once conditions allow"
        assert shop.commands.request_tuning(c) == "it is tuned next, once conditions allow"
        assert tuner._next_record() is c
        c.postpone("CPU pressure is 90 %", time.monotonic() + 30)
        assert tuner._next_record() is b
        b.postpone("CPU pressure is 90 %", time.monotonic() + 30)
        assert tuner._next_record() is None
        for record in (c, b):
            record.move(TuningPhase.SETTLED)
            record.ticket, record.verified, record.not_before = 0, True, time.monotonic() + 600
        assert tuner._next_record() is a


@on_loop
async def test_a_search_by_the_tuners_own_wish_makes_way_for_what_is_asked_for(tmp_path: Path) -> None:
    now = CALM
    async with workshop(three_models(tmp_path), conditions=lambda: now, budget=600.0) as shop:
        a, b, c = (shop.records.of(name, "") for name in "abc")
        with capture_logs() as logged:
            shop.tuner.start()
            await until(lambda: a.progress is not None)
            # Of the search that makes way, so it speaks against nothing.
            now = Conditions(95.0, 0.9)
            shop.commands.request_tuning(b)
            await until(lambda: b.phase is TuningPhase.SEARCHING)
        assert (a.phase, a.ticket, a.decisions) == (TuningPhase.WANTED, 0, {})
        [line] = [line for line in logged if line["event"] == "tuning postponed"]
        assert (line["model"], line["why"]) == ("a", "model 'b' goes first, requested by an operator")
        # What was asked for is not put aside itself.
        assert shop.commands.request_tuning(c) == "it is tuned after 1 earlier requests, once conditions allow"
        assert shop.commands.request_tuning(b) == "it is being tuned"
        assert shop.tuner._reason_to_stop() == ""
        assert [r.phase for r in (a, b, c)] == [TuningPhase.WANTED, TuningPhase.SEARCHING, TuningPhase.WANTED]


@on_loop
async def test_what_is_asked_for_while_it_is_tried_is_tuned_afterwards_and_survives_a_load(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        shop.record.move(TuningPhase.TRYING)
        shop.commands.request_tuning(shop.record)
        assert (shop.tuner._next_record(), shop.record.phase) == (None, TuningPhase.TRYING)
        shop.records.finish(shop.record, TuningDecision.KEPT, "as before")
        assert shop.tuner._next_record() is shop.record
        await shop.catalog.load("m")
        assert (shop.tuner._next_record(), shop.record.status_text) == (
            shop.record,
            "requested by an operator",
        )


async def at_once(_: TrafficSplit) -> bool:
    return True


@on_loop
async def test_a_model_that_comes_to_run_inline_loses_its_profile_and_is_left_alone(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path, small.scaled(2), "[warmup]\nruns = 0\n")) as shop:
        shop.profiles.store(profile(shop))
    async with workshop(tmp_path) as again:
        tuner, record = again.tuner, again.record
        assert record.profile is not None
        [(model_version, deployment)] = again.catalog.serving()
        own = deployment.config.model_copy(update={"execution": record.source.config.execution})
        assert await again.catalog.roll_out(model_version, own, at_once, inline=True)
        tuner.path_changed(model_version, inline=True)
        assert (record.profile, again.profiles.stored("m", 1, "CPU")) == (None, None)
        assert (record.phase, "shorter than a hand-over" in record.status_text) == (TuningPhase.SETTLED, True)
        assert tuner._next_record() is None
        with pytest.raises(InvalidRequest, match=r"set execution\.path in model\.toml to have it tuned"):
            again.commands.request_tuning(record)
        assert await again.catalog.roll_out(model_version, own, at_once, inline=False)
        tuner.path_changed(model_version, inline=False)
        assert (record.phase, record.status_text) == (TuningPhase.WANTED, "its runs are no longer inline")
        assert tuner._next_record() is record


@on_loop
async def test_where_runs_are_computed_is_not_changed_while_they_are_tuned_or_pinned(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        [(model_version, _)] = shop.catalog.serving()
        record = shop.record
        assert shop.tuner.may_change_path(model_version)
        for phase in TuningPhase:
            record.status = TuningStatus(phase)
            assert shop.tuner.may_change_path(model_version) is not record.status.busy
        record.cancel("")
        for pinned in (True, False):
            record.profile = profile(shop, pinned=pinned)
            assert shop.tuner.may_change_path(model_version) is not pinned


@on_loop
async def test_a_promotion_can_be_taken_back_and_stays_so(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        before = shop.infer_requests
        await adopted(shop)
        assert shop.infer_requests == 3
        await shop.commands.roll_back(shop.record)
        assert (shop.infer_requests, await shop.answer()) == (before, [2, 4, 6, 8])
        assert shop.record.profile is not None
        assert shop.record.profile.pinned
    async with workshop(tmp_path) as again:
        assert again.infer_requests == before


@on_loop
async def test_a_profile_can_be_pinned_and_let_go(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path)) as shop:
        shop.profiles.store(profile(shop))
    async with workshop(tmp_path) as again:
        for pinned in (True, False):
            again.commands.pin(again.record, pinned)
            stored = again.profiles.stored("m", 1, "CPU")
            assert stored is not None
            assert stored.pinned is pinned


@on_loop
async def test_what_can_not_be_done_is_said(tmp_path: Path) -> None:
    async with workshop(repository(tmp_path, settings='devices = ["CPU", "AUTO:CPU"]'), mode="off") as shop:
        assert (shop.record.phase, shop.record.status_text) == (
            TuningPhase.UNTUNABLE,
            "it is served on several devices with one set of settings",
        )
        with pytest.raises(InvalidRequest, match="tuning is off"):
            shop.commands.request_tuning(shop.record)
        with pytest.raises(InvalidRequest, match="nothing to pin"):
            shop.commands.pin(shop.record, True)
        with pytest.raises(InvalidRequest, match="nothing to roll back"):
            await shop.commands.roll_back(shop.record)
        with pytest.raises(UnknownModel):
            shop.records.of("nosuch", "")
        with pytest.raises(InvalidRequest, match="version '7' was not loaded; loaded: 1"):
            shop.records.of("m", "7")
