"""The Tuner service: what operators read, and what they ask for."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferd._pb import tuner_pb2 as pb
from inferd.errors import InferdError, InvalidRequest, ModelUnavailable, RolloutRejected, UnknownModel
from inferd.rpc.tuning import TunerControl
from inferd.tuner.profile import as_json
from inferd.tuner.record import TuningDecision, TuningPhase, TuningStatus
from tests.event_loop import on_loop
from tests.tuner.test_tuner import OTHER, Workshop, profile, repository, workshop

CONTEXT: Any = None


@asynccontextmanager
async def control(folder: Path, **more: Any) -> AsyncIterator[tuple[Workshop, TunerControl]]:
    async with workshop(folder, **more) as shop:
        yield shop, TunerControl(shop.commands)


@on_loop
async def test_status_tells_what_each_model_is_served_with(tmp_path: Path) -> None:
    async with control(repository(tmp_path)) as (shop, tuner):
        shop.profiles.store(profile(shop))
    async with control(tmp_path) as (_, tuner):
        [line] = (await tuner.status(pb.StatusRequest(), CONTEXT)).tunings  # type: ignore[attr-defined]
        assert (line.model, line.version, line.device, line.phase) == ("m", "1", "CPU", "settled")
        assert (line.serving, line.gain, line.pinned) == (OTHER.describe(), 1.25, False)
        assert line.said == "from the profile of 2026-01-01T00:00:00+00:00: made up"


@on_loop
async def test_explain_and_export_tell_everything_the_profile_knows(tmp_path: Path) -> None:
    async with control(repository(tmp_path)) as (shop, tuner):
        version = pb.ModelVersion(model="m")
        blank: Any = await tuner.explain(version, CONTEXT)
        assert (list(blank.points), blank.tuning.serving) == ([], "")
        with pytest.raises(InvalidRequest, match="no profile to export"):
            await tuner.export(version, CONTEXT)
        found = shop.record.profile = profile(shop)
        told: Any = await tuner.explain(version, CONTEXT)
        assert (told.reason, told.objective, told.percentile) == ("made up", 0.01, 99.0)
        [point] = told.points
        assert (point.candidate, point.goodput, point.chosen, point.eligible) == (OTHER.describe(), 1000.0, True, True)
        exported: Any = await tuner.export(version, CONTEXT)
        assert exported.profile == as_json(found)


@on_loop
async def test_settings_of_an_operator_are_tried_served_and_pinned(tmp_path: Path) -> None:
    async with control(repository(tmp_path)) as (shop, tuner):
        wanted = pb.Settings(streams=1, requests=2, choices={"pinning": "on", "path": "sync"})
        said: Any = await tuner.pin(pb.PinRequest(model="m", pinned=True, settings=wanted), CONTEXT)
        assert said.said.startswith("serving with 1 stream, 2 threads, 2 requests")
        assert await shop.answer() == [2, 4, 6, 8]
        assert shop.record.decisions == {TuningDecision.PROMOTED: 1}
        stored = shop.profiles.stored("m", 1, "CPU")
        assert stored is not None
        assert (stored.pinned, stored.winner.requests, stored.winner.path) == (True, 2, "sync")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (pb.Settings(streams=3), "streams must be 1..2, not 3"),
        (pb.Settings(threads=9), "threads must be 1..2, not 9"),
        (pb.Settings(batch=2), "batch must be 1..1, not 2"),
        (pb.Settings(streams=2, requests=1), "2 streams need as many threads and requests at least"),
        (pb.Settings(choices={"path": "quick"}), "path 'quick' is unknown; allowed: async, sync"),
        (pb.Settings(choices={"pinning": "yes"}), "pinning 'yes' is unknown; allowed: on, off"),
        (
            pb.Settings(choices={"speed": "on"}),
            "choice 'speed' is unknown; allowed: pinning, hyper_threading, core_type, path",
        ),
    ],
)
def test_settings_that_can_not_be_had_are_refused_with_what_can(
    settings: pb.Settings, said: str, tmp_path: Path
) -> None:
    @on_loop
    async def check() -> None:
        async with control(repository(tmp_path)) as (shop, tuner):
            with pytest.raises(InvalidRequest, match=said):
                await tuner.pin(pb.PinRequest(model="m", pinned=True, settings=settings), CONTEXT)
            assert shop.record.phase is TuningPhase.SETTLED

    check()


@on_loop
async def test_settings_that_do_not_pass_their_trial_are_told_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken.xml"
    broken.write_text("no model")
    async with control(repository(tmp_path), instead=broken) as (shop, tuner):
        with pytest.raises(RolloutRejected, match="rollout rejected \\(failed\\)"):
            await tuner.pin(pb.PinRequest(model="m", pinned=True, settings=pb.Settings(requests=3)), CONTEXT)
        assert await shop.answer() == [2, 4, 6, 8]
        assert shop.record.profile is None


@on_loop
async def test_pinning_rolling_back_and_asking_for_a_tuning(tmp_path: Path) -> None:
    async with control(repository(tmp_path)) as (shop, tuner):
        version = pb.ModelVersion(model="m", version="1")
        shop.record.profile = profile(shop, previous=replace(OTHER, requests=1))
        said: Any = await tuner.pin(pb.PinRequest(model="m", pinned=True), CONTEXT)
        assert (said.said, shop.record.profile.pinned) == ("pinned", True)
        said = await tuner.roll_back(version, CONTEXT)
        assert "1 request" in said.said
        assert shop.infer_requests == 1
        await tuner.tune(version, CONTEXT)
        assert shop.record.phase is TuningPhase.WANTED


@on_loop
async def test_what_is_not_there_or_busy_is_refused(tmp_path: Path) -> None:
    async with control(repository(tmp_path)) as (shop, tuner):
        calls: list[tuple[Callable[..., Any], object, type[InferdError]]] = [
            (tuner.explain, pb.ModelVersion(model="nosuch"), UnknownModel),
            (tuner.tune, pb.ModelVersion(model="m", version="2"), InvalidRequest),
            (tuner.pin, pb.PinRequest(model="m", settings=pb.Settings(streams=1)), InvalidRequest),
        ]
        for call, asked, error in calls:
            with pytest.raises(error):
                await call(asked, CONTEXT)
        shop.record.status = TuningStatus(TuningPhase.SEARCHING)
        shop.record.profile = profile(shop)
        with pytest.raises(ModelUnavailable, match="being tuned"):
            await tuner.roll_back(pb.ModelVersion(model="m"), CONTEXT)


def test_every_method_of_the_service_is_served() -> None:
    control: Any = TunerControl(None)  # type: ignore[arg-type]  # nothing is called
    assert set(control.methods) == {m.name for m in pb.DESCRIPTOR.services_by_name["Tuner"].methods}
