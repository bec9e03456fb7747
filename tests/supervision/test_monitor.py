"""Readiness follows devices and models at once, and lost versions are loaded again."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from structlog.testing import capture_logs

from inferd.catalog.catalog import Catalog
from inferd.deployment.deployment import Deployment
from inferd.deployment.loader import CatalogLimits
from inferd.errors import InferdError, ModelUnavailable
from inferd.health.health import HealthRules, HealthState
from inferd.health.liveness import LivenessRules
from inferd.health.reload_backoff import ReloadBackoffRules
from inferd.health.restart_policy import RestartPolicy, RestartRules
from inferd.lifecycle import ModelState
from inferd.repository.find import Repository
from inferd.requests import Observation
from inferd.scheduling.rules import QueueLimits
from inferd.supervision.monitor import HealthMonitor, MonitorRules
from inferd.supervision.restart import Restarter
from tests.engine.fake_engine import FakeEngine
from tests.engine.fake_slot import FakeSlot
from tests.event_loop import on_loop, until
from tests.replies import Answer, ask

GONE = "L0 zeFenceHostSynchronize result: ZE_RESULT_ERROR_DEVICE_LOST, code 0x70000001 - device hung"
# Nothing but news makes such a monitor look.
NEVER = 3600.0
NO_PROBES = HealthRules(probe_interval=0.0)
EAGER = HealthRules(probe_interval=0.005, retry_interval=0.005)


class House:
    """A catalog whose models run on fakes, and the monitor that looks after it."""

    def __init__(
        self,
        root: Path,
        *present: str,
        toml: str = "",
        rules: HealthRules = NO_PROBES,
        backoff_rules: ReloadBackoffRules | None = None,
        look: float = NEVER,
        deaf: bool = False,
        unusable: str | None = None,
    ) -> None:
        self.engine = FakeEngine(*present, deaf=deaf)
        (root / "m" / "1").mkdir(parents=True)
        (root / "m" / "1" / "model.xml").write_text("never read")
        (root / "m" / "model.toml").write_text(toml)
        self.seen: list[Observation] = []
        self.shown: list[tuple[ModelState, str]] = []
        self.catalog = Catalog(
            Repository(root),
            self.engine,  # type: ignore[arg-type]  # at the engine seam
            CatalogLimits(QueueLimits(100, 1 << 20), 2, 0.01),
            observe=self.seen.append,
            changed=self._changed,
        )
        self.tried: list[str] = []
        self.way_for: list[str] = []
        restarter = None
        if unusable is not None:
            policy = RestartPolicy(RestartRules(min_uptime=0.0, retry_interval=0.001), time.monotonic())
            restarter = Restarter(policy, lambda device: self.tried.append(device) or unusable, self.way_for.append)  # type: ignore[func-returns-value]
        monitor_rules = MonitorRules(rules, backoff_rules or ReloadBackoffRules(), look)
        self.monitor = HealthMonitor(self.catalog, self.engine.is_present, monitor_rules, restarter=restarter)

    async def _changed(self) -> None:
        for entry in self.catalog.index():
            if [(entry.state, entry.reason)] != self.shown[-1:]:
                self.shown.append((entry.state, entry.reason))

    async def __aenter__(self) -> "House":
        await self.catalog.load_all()
        self.monitor.start()
        # It looks once at the start, and knows the model then, and whether its device is there.
        await until(lambda: self.deployment.dispatcher.on_health_change is not None)
        if self.monitor._presence.asking is not None:
            await self.monitor._presence.asking
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.monitor.stop()
        for slot in [slot for slots in self.engine.slots.values() for slot in slots if slot.running and slot.deaf]:
            slot.complete()
        await self.catalog.close()

    @property
    def deployment(self) -> Deployment:
        (held,) = self.catalog.loaded()
        return held[1]

    @property
    def reason(self) -> str:
        (entry,) = self.catalog.index()
        return entry.reason

    @property
    def ready(self) -> bool:
        return self.catalog.ready("m", "")

    def submit(self, count: int = 1) -> list[Answer]:
        asked = [ask() for _ in range(count)]
        for request, _ in asked:
            self.catalog.resolve("m", "")[1].dispatcher.submit(request)
        return [answer for _, answer in asked]

    def refusal(self) -> InferdError:
        with pytest.raises(InferdError) as refused:
            self.catalog.resolve("m", "")
        return refused.value

    async def serve(self, act: Callable[[FakeSlot], object], done: Callable[[], bool]) -> None:
        """Have ``act`` end whatever runs, until ``done``."""
        while not done():
            for device in list(self.engine.slots):
                for slot in self.engine.running(device):
                    act(slot)
            await asyncio.sleep(0)


def devices(*names: str) -> str:
    return f"devices = [{', '.join(repr(name) for name in names)}]\n"


# -- devices that are lost -------------------------------------------------------------


@on_loop
async def test_a_run_that_says_that_its_device_is_gone_makes_the_model_not_ready_without_a_look(tmp_path: Path) -> None:
    async with House(tmp_path, "NPU", toml=devices("NPU")) as house:
        house.engine.present.clear()
        answers = house.submit(5)
        house.engine.slots["NPU"][0].fail(GONE)
        for answer in answers:
            assert str((await answer.ended()).error) == f"model 'm' is failed: NPU: {GONE}"
        await until(lambda: not house.ready)

        assert [answer.times for answer in answers] == [1] * 5
        refused = house.refusal()
        assert isinstance(refused, ModelUnavailable)
        assert "NPU: " in str(refused)
        (entry,) = house.catalog.index()
        assert (entry.state, entry.desired) == (ModelState.UNAVAILABLE, True)
        assert house.monitor.state(house.deployment) is HealthState.FAILED


@on_loop
async def test_a_device_that_openvino_finds_no_more_makes_the_model_not_ready(tmp_path: Path) -> None:
    async with House(tmp_path, "GPU", toml=devices("GPU"), look=0.001) as house:
        assert house.ready
        house.engine.present.clear()
        await until(lambda: not house.ready)
        assert "GPU: OpenVINO no longer finds it" in str(house.refusal())


@on_loop
async def test_while_another_device_is_left_the_model_stays_ready(tmp_path: Path) -> None:
    async with House(tmp_path, "GPU", "CPU", toml=devices("GPU", "CPU")) as house:
        house.engine.present.remove("GPU")
        answers = house.submit(3)
        house.engine.running("GPU")[0].fail(GONE)
        await house.serve(
            lambda slot: slot.complete(), lambda: all(answer.times for answer in answers) and house.engine.loads > 1
        )
        assert [answer.error for answer in answers] == [None] * 3
        assert house.ready
        assert all(state is not ModelState.UNAVAILABLE for state, _ in house.shown)
        await until(lambda: "reloading failed" in house.reason)
        assert house.reason.startswith(f"GPU is disabled: {GONE}; ")
        assert house.monitor.unready_reasons == {}


@on_loop
async def test_what_lost_its_device_is_loaded_again_when_the_device_is_back(tmp_path: Path) -> None:
    backoff_rules = ReloadBackoffRules(first=0.001, fast_tries=3, slow_interval=0.002)
    async with House(tmp_path, "GPU", toml=devices("GPU"), backoff_rules=backoff_rules, look=0.001) as house:
        before = house.deployment
        house.engine.present.clear()
        house.submit()
        house.engine.running("GPU")[0].fail(GONE)
        await until(lambda: house.engine.loads > 5)
        assert not house.ready
        assert "reloading failed" in house.reason
        assert "next attempts every 0 s: device 'GPU' needs GPU, which is absent" in house.reason

        house.engine.present.add("GPU")
        await until(lambda: house.ready)
        assert house.deployment is not before
        (answer,) = house.submit()
        house.engine.running("GPU")[0].complete()
        assert (await answer.ended()).error is None
        await until(lambda: before.loaded.freed)


@on_loop
async def test_what_lost_its_device_is_loaded_as_its_files_are_by_then(tmp_path: Path) -> None:
    async with House(tmp_path, "GPU", toml=devices("GPU"), look=0.001) as house:
        before = house.deployment
        (tmp_path / "m" / "1" / "model.xml").write_text("another, and no client has asked for it")
        house.submit()
        house.engine.running("GPU")[0].fail(GONE)
        await until(lambda: house.ready and house.deployment is not before)
        assert house.deployment.source.digest != before.source.digest
        assert house.reason == ""


@on_loop
async def test_a_version_that_is_unloaded_while_it_has_failed_stays_so(tmp_path: Path) -> None:
    backoff_rules = ReloadBackoffRules(first=0.001, slow_interval=0.001)
    async with House(tmp_path, "GPU", toml=devices("GPU"), backoff_rules=backoff_rules, look=0.001) as house:
        house.engine.present.clear()
        house.submit()
        house.engine.running("GPU")[0].fail(GONE)
        await until(lambda: not house.ready)
        await house.catalog.unload("m")
        tried = house.engine.loads
        house.engine.present.add("GPU")
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert house.engine.loads <= tried + 1
        assert not house.ready
        assert "unloaded" in str(house.refusal())


# -- making way for a fresh process ------------------------------------------------------


@on_loop
async def test_once_reloading_has_failed_often_enough_the_process_makes_way_if_another_can_use_it(
    tmp_path: Path,
) -> None:
    backoff_rules = ReloadBackoffRules(first=0.001, fast_tries=3, slow_interval=3600.0)
    async with House(
        tmp_path, "GPU", toml=devices("GPU"), backoff_rules=backoff_rules, look=0.001, unusable=""
    ) as house:
        house.engine.present.clear()
        house.submit()
        house.engine.running("GPU")[0].fail(GONE)
        await until(lambda: bool(house.way_for))
        assert (house.tried, house.way_for) == (["GPU"], ["GPU"])
        # The first load, and the tries.
        assert house.engine.loads == 1 + backoff_rules.fast_tries
        assert not house.ready


@on_loop
async def test_what_a_fresh_process_could_not_use_either_ends_none(tmp_path: Path) -> None:
    backoff_rules = ReloadBackoffRules(first=0.001, fast_tries=3, slow_interval=0.01)
    async with House(
        tmp_path, "GPU", toml=devices("GPU"), backoff_rules=backoff_rules, look=0.001, unusable="no"
    ) as house:
        house.engine.present.clear()
        house.submit()
        house.engine.running("GPU")[0].fail(GONE)
        await until(lambda: len(house.tried) > 3)
        house.engine.present.add("GPU")
        await until(lambda: house.ready)
        assert house.way_for == []


# -- runs that hang --------------------------------------------------------------------


@on_loop
async def test_a_model_that_hangs_beyond_repair_is_loaded_again_and_not_too_often(tmp_path: Path) -> None:
    toml = "[execution]\nhang_timeout = 0.005"
    backoff_rules = ReloadBackoffRules(first=0.001, slow_interval=0.001)
    async with House(tmp_path, "CPU", toml=toml, backoff_rules=backoff_rules, look=0.001, deaf=True) as house:
        # Each hangs four runs of two slots, and one more that can't be put anywhere.
        for _ in range(2):
            before = house.deployment
            answers = house.submit(5)
            for answer in answers:
                await answer.ended()
            assert [answer.times for answer in answers] == [1] * 5
            await until(lambda: house.ready and house.deployment is not before)  # noqa: B023 - asked before the next turn
        assert house.catalog.unfreed("m") <= 2


@on_loop
async def test_a_model_that_can_run_nothing_is_not_ready_and_what_waits_is_answered_once_it_can(tmp_path: Path) -> None:
    toml = "[execution]\nhang_timeout = 0.001"
    rules = replace(NO_PROBES, hang_grace=0.001)
    async with House(tmp_path, "CPU", toml=toml, rules=rules, deaf=True) as house:
        # The next infer request would be made at once.
        house.engine.no_more = Event()
        answers = house.submit(4)
        for answer in answers[:2]:
            await answer.ended()
        await until(lambda: not house.ready)
        assert house.reason == "hung runs hold all of its infer requests"
        assert house.monitor.unready_reasons == {("m", "1"): "hanging"}
        assert isinstance(house.refusal(), ModelUnavailable)
        assert [answer.times for answer in answers] == [1, 1, 0, 0]

        house.engine.slots["CPU"][0].complete()
        await until(lambda: house.ready)
        await house.serve(lambda slot: slot.complete(), lambda: all(answer.times for answer in answers))
        assert [answer.times for answer in answers] == [1] * 4
        assert house.monitor.hung["m", "1", "CPU"] >= 2
        assert house.monitor.unready_reasons == {}
        house.engine.no_more.set()


@on_loop
async def test_what_hangs_stays_counted_when_the_version_is_loaded_again(tmp_path: Path) -> None:
    toml = "[execution]\nhang_timeout = 0.005"
    backoff_rules = ReloadBackoffRules(first=0.001, slow_interval=0.001)
    async with House(tmp_path, "CPU", toml=toml, backoff_rules=backoff_rules, look=0.001, deaf=True) as house:
        before = house.deployment
        for answer in house.submit(5):
            await answer.ended()
        await until(lambda: house.ready and house.deployment is not before)
        # One of two slots hung again on the infer request that it was given.
        assert house.monitor.hung["m", "1", "CPU"] >= 3
        assert house.monitor.replaced["m", "1", "CPU"] >= 1


# -- the watchdog ----------------------------------------------------------------------


@on_loop
async def test_a_model_that_owes_an_answer_for_too_long_is_silent_until_it_answers_or_is_unloaded(
    tmp_path: Path,
) -> None:
    rules = replace(NO_PROBES, liveness=LivenessRules.within(0.02))
    async with House(tmp_path, "CPU", rules=rules) as house:
        assert house.monitor.silent() == {}
        (answer,) = house.submit()
        with capture_logs() as logs:
            await until(lambda: "m/1" in house.monitor.silent())
            assert house.monitor.silent()["m/1"] > 0.02
            house.engine.running("CPU")[0].complete()
            await answer.ended()
            # A probe that is due meanwhile is answered too.
            await house.serve(lambda slot: slot.complete(), lambda: house.monitor.silent() == {})
        events = [(entry["event"], entry["model"]) for entry in logs if entry["event"].startswith("model ")]
        assert events[:2] == [
            ("model silent; watchdog not fed", "m/1"),
            ("model responded again", "m/1"),
        ]
        house.submit()
        await until(lambda: "m/1" in house.monitor.silent())
        await house.catalog.unload("m")
        assert house.monitor.silent() == {}


@on_loop
async def test_without_a_watchdog_no_model_is_silent_and_none_is_sent_a_probe(tmp_path: Path) -> None:
    async with House(tmp_path, "CPU", look=0.001) as house:
        house.submit()
        for _ in range(20):
            await asyncio.sleep(0.001)
            assert house.monitor.silent() == {}
        assert house.deployment.dispatcher.scheduler.in_flight == 1


# -- probes --------------------------------------------------------------------------


@on_loop
async def test_a_model_whose_probes_fail_is_not_ready_until_one_ends_well(tmp_path: Path) -> None:
    async with House(tmp_path, "CPU", rules=EAGER, look=0.001) as house:
        await house.serve(lambda slot: slot.complete(), lambda: house.deployment.dispatcher.completed > 3)
        assert house.ready
        await house.serve(lambda slot: slot.fail("wrong weather"), lambda: not house.ready)
        assert "health probes fail that succeeded before" in str(house.refusal())
        await house.serve(lambda slot: slot.complete(), lambda: house.ready)
        (answer,) = house.submit()
        await house.serve(lambda slot: slot.complete(), lambda: answer.times > 0)
        # Probes are counted nowhere.
        assert [seen.outcome for seen in house.seen] == ["ok"]


@on_loop
async def test_a_model_that_leaves_probes_without_an_answer_is_not_ready(tmp_path: Path) -> None:
    async with House(tmp_path, "CPU", rules=replace(EAGER, probe_timeout=0.02), look=0.001) as house:
        await house.serve(lambda slot: slot.complete(), lambda: house.deployment.dispatcher.completed > 3)
        await until(lambda: not house.ready)
        assert "no response to a health probe" in str(house.refusal())
        assert house.seen == []


@on_loop
async def test_a_client_whose_requests_all_fail_does_not_make_the_model_unready(tmp_path: Path) -> None:
    async with House(tmp_path, "CPU", rules=EAGER, look=0.001) as house:
        await house.serve(lambda slot: slot.complete(), lambda: house.deployment.dispatcher.completed > 0)

        def fails_but_for_probes(slot: FakeSlot) -> None:
            slot.fail("no such shape") if _of_a_client(slot) else slot.complete()

        for _ in range(20):
            answers = house.submit(2)
            await house.serve(fails_but_for_probes, lambda: all(a.times for a in answers))  # noqa: B023 - likewise
            assert house.ready
        assert [seen.outcome for seen in house.seen] == ["internal"] * 40


def _of_a_client(slot: FakeSlot) -> bool:
    written: Sequence[Any] = slot.written
    return bytes(written[0].data) == bytes(ask()[0].inputs[0].data)  # type: ignore[arg-type]
