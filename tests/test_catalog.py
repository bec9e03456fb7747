"""The catalog loads, routes, swaps and unloads real models, and no request pays for it."""

import asyncio
import gc
import shutil
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferd.deployment.model_version import ModelVersion
from inferd.errors import (
    ConfigurationError,
    Draining,
    LoadFailed,
    ModelUnavailable,
    QueueFull,
    RepositoryError,
    UnknownModel,
    UnknownVersion,
)
from inferd.lifecycle import ModelState
from tests.catalog.house import House
from tests.engine import models
from tests.engine.models import tensor
from tests.event_loop import on_loop, until

ONE_SLOT = "[warmup]\nruns = 1\n[execution]\ninfer_requests = 1\nthreads = 1"
WIDE = tensor(np.zeros((256, 256)))


def gone(references: Sequence["weakref.ref[Any]"]) -> bool:
    gc.collect()
    return not any(reference() is not None for reference in references)


# -- loading all ---------------------------------------------------------------------


@on_loop
async def test_one_broken_model_keeps_no_other_from_being_served(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("doubled", models.scaled(2))
        house.put("tripled", models.scaled(3))
        house.put("garbage", b"no model")
        house.put("misspelt", models.scaled(1), "no_such_key = 1")
        await house.catalog.load_all()

        assert house.index() == [
            ("doubled", "1", "READY"),
            ("garbage", "1", "UNAVAILABLE"),
            ("misspelt", "", "UNAVAILABLE"),
            ("tripled", "1", "READY"),
        ]
        assert (await house.times("doubled"), await house.times("tripled")) == (2, 3)
        assert "failed to load" in house.reason("garbage")
        assert "misspelt/model.toml: no_such_key: unknown key" in house.reason("misspelt")
        assert str(tmp_path) not in house.reason("garbage") + house.reason("misspelt")


@on_loop
async def test_each_change_of_a_state_is_told(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        await house.catalog.unload("m")
        told = [states[0][2] for states in house.states if states]
        assert [s for n, s in enumerate(told) if told[:n][-1:] != [s]] == [
            "LOADING",
            "READY",
            "UNLOADING",
            "UNAVAILABLE",
        ]


@on_loop
async def test_the_index_counts_versions_as_numbers(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        for version in (10, 2, 1):
            house.put("m", models.scaled(version), '[versions]\npolicy = "all"', version)
        await house.catalog.load_all()
        assert [version for _, version, _ in house.index()] == ["1", "2", "10"]
        assert house.catalog.versions("m") == [1, 2, 10]


# -- routing -------------------------------------------------------------------------


@on_loop
async def test_no_version_means_the_newest_that_is_ready(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        for version in (1, 2, 10):
            house.put("m", models.scaled(version), '[versions]\npolicy = "all"', version)
        house.put("m", b"no model", '[versions]\npolicy = "all"', 11)
        await house.catalog.load_all()

        assert await house.times("m") == 10
        assert [await house.times("m", version) for version in ("1", "2", "10")] == [1, 2, 10]
        assert house.catalog.ready("m", "10")
        assert not house.catalog.ready("m", "11")
        assert sorted(model_version.version for model_version, _ in house.catalog.serving()) == [1, 2, 10]


@on_loop
async def test_what_is_not_there_is_told_apart_from_what_is_not_ready(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        house.put("garbage", b"no model")
        await house.catalog.load_all()

        assert isinstance(house.refusal("absent"), UnknownModel)
        unknown = house.refusal("m", "7")
        assert isinstance(unknown, UnknownVersion)
        assert str(unknown) == "model 'm' has no version '7'; versions: 1"
        for version in ("", "1"):
            refused = house.refusal("garbage", version)
            assert isinstance(refused, ModelUnavailable)
            assert "failed to load" in str(refused)
        with pytest.raises(UnknownModel):
            house.catalog.versions("absent")


@pytest.mark.parametrize("version", ["01", "1 ", "+1", "-1", "one", "１", "²", "1" * 5000])
@on_loop
async def test_a_version_that_is_not_spelt_as_one_is_unknown(tmp_path: Path, version: str) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        assert isinstance(house.refusal("m", version), UnknownVersion)


@on_loop
async def test_a_model_s_own_queue_limit_goes_before_the_daemon_s(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.slow(60), ONE_SLOT + "\n[queue]\nmax_length = 2")
        await house.catalog.load_all()
        answers = [house.submit("m", WIDE) for _ in range(3)]
        with pytest.raises(QueueFull, match="2 requests waiting"):
            house.submit("m", WIDE)
        for answer in answers:
            assert (await answer.ended()).error is None


# -- reloading -----------------------------------------------------------------------


@on_loop
async def test_a_reload_swaps_the_model_under_traffic_without_failing_a_request(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(1))
        await house.catalog.load_all()
        stop = asyncio.Event()

        async def client() -> list[float]:
            answers = []
            while not stop.is_set():
                answers.append(await house.times("m"))
                # What runs on the loop's own thread is answered before it is waited for.
                await asyncio.sleep(0)
            return answers

        clients = [asyncio.create_task(client()) for _ in range(4)]
        for factor in (2, 3, 4):
            house.put("m", models.scaled(factor))
            await house.catalog.load("m")
            assert await house.times("m") == factor
        stop.set()
        answers = await asyncio.gather(*clients)

        assert all(sequence == sorted(sequence) for sequence in answers)
        assert {a for sequence in answers for a in sequence} >= {1, 2, 3}
        assert Counter(seen.outcome for seen in house.seen) == {"ok": sum(map(len, answers)) + 3}
        assert house.index() == [("m", "1", "READY")]


@on_loop
async def test_a_reload_answers_what_the_old_model_had_accepted(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.slow(60), ONE_SLOT)
        await house.catalog.load_all()
        accepted = [house.submit("m", WIDE) for _ in range(4)]
        house.put("m", models.scaled(2))
        await house.catalog.load("m")

        assert [(answer.times, answer.error) for answer in accepted] == [(1, None)] * 4
        assert await house.times("m") == 2


@on_loop
async def test_a_reload_that_fails_raises_and_leaves_the_old_model_serving(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()

        house.put("m", b"no model")
        with pytest.raises(LoadFailed, match="model 'm' version 1 failed to load"):
            await house.catalog.load("m")
        assert await house.times("m") == 2

        house.put("m", models.scaled(3), "no_such_key = 1")
        with pytest.raises(ConfigurationError, match=r"m/model.toml: no_such_key"):
            await house.catalog.load("m")
        assert await house.times("m") == 2
        assert house.index() == [("m", "1", "READY")]

        house.put("m", models.scaled(3))
        await house.catalog.load("m")
        assert await house.times("m") == 3


@on_loop
async def test_a_new_version_that_is_broken_leaves_the_one_before_it_serving(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(1))
        await house.catalog.load_all()

        house.put("m", b"no model", version=2)
        with pytest.raises(LoadFailed, match="version 2"):
            await house.catalog.load("m")
        assert await house.times("m") == 1
        assert house.index() == [("m", "1", "READY"), ("m", "2", "UNAVAILABLE")]

        house.put("m", models.scaled(2), version=2)
        await house.catalog.load("m")
        assert await house.times("m") == 2
        assert house.index() == [("m", "2", "READY")]
        assert house.catalog.loads == {("m", "ok"): 2, ("m", "failed"): 1}


@on_loop
async def test_versions_no_longer_picked_are_retired(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        for version in (1, 2, 3):
            house.put("m", models.scaled(version), '[versions]\npolicy = "all"', version)
        await house.catalog.load_all()
        house.put("m", models.scaled(3), '[versions]\npolicy = "listed"\nlisted = [1, 3]', 3)
        await house.catalog.load("m")

        assert house.index() == [("m", "1", "READY"), ("m", "3", "READY")]
        assert isinstance(house.refusal("m", "2"), UnknownVersion)
        assert (await house.times("m"), await house.times("m", "1")) == (3, 1)


@on_loop
async def test_a_model_that_was_broken_is_served_once_it_is_mended(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2), "no_such_key = 1")
        await house.catalog.load_all()
        assert isinstance(house.refusal("m"), ModelUnavailable)

        house.put("m", models.scaled(2))
        await house.catalog.load("m")
        assert await house.times("m") == 2
        assert house.index() == [("m", "1", "READY")]


@on_loop
async def test_a_model_that_is_broken_from_the_start_is_told_at_once(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        await house.catalog.load_all()
        house.put("late", models.scaled(2), "no_such_key = 1")
        with pytest.raises(ConfigurationError):
            await house.catalog.load("late")
        assert house.index() == [("late", "", "UNAVAILABLE")]
        assert house.states[-1] == house.index()


@on_loop
async def test_changes_of_one_model_come_one_after_another(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        first = house.pools("m")
        await asyncio.gather(house.catalog.load("m"), house.catalog.load("m"), house.catalog.load("m"))

        assert house.index() == [("m", "1", "READY")]
        assert await house.times("m") == 2
        await until(lambda: gone(first))


@on_loop
async def test_a_client_that_stops_waiting_does_not_stop_the_change(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        asked = asyncio.create_task(house.catalog.load("m"))
        await until(lambda: house.index() == [("m", "1", "LOADING")])
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await until(lambda: house.index() == [("m", "1", "READY")])
        assert await house.times("m") == 2


@on_loop
async def test_only_what_is_on_disk_can_be_loaded(tmp_path: Path) -> None:
    async with House(tmp_path / "repository") as house:
        models.save(models.scaled(2), tmp_path / "outside" / "1")
        for name in ("absent", "../outside", ".", ""):
            with pytest.raises(UnknownModel):
                await house.catalog.load(name)
        assert house.index() == []


# -- unloading -----------------------------------------------------------------------


@on_loop
async def test_unloading_answers_what_was_accepted_and_refuses_what_comes(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.slow(60), ONE_SLOT)
        await house.catalog.load_all()
        accepted = [house.submit("m", WIDE) for _ in range(3)]
        unloading = asyncio.create_task(house.catalog.unload("m"))
        await until(lambda: house.index() == [("m", "1", "UNLOADING")])
        assert str(house.refusal("m", "1")) == "model 'm' is unloading in version 1"
        assert accepted[-1].times == 0
        assert [model_version.name for model_version, _ in house.catalog.loaded()] == ["m"]
        assert [entry.desired for entry in house.catalog.index()] == [True]
        await unloading

        assert [(answer.times, answer.error) for answer in accepted] == [(1, None)] * 3
        assert not list(house.catalog.loaded())
        assert [entry.desired for entry in house.catalog.index()] == [False]
        assert str(house.refusal("m")) == "model 'm' is unavailable: unloaded"
        assert house.index() == [("m", "1", "UNAVAILABLE")]
        assert not list(house.catalog.serving())

        await house.catalog.load("m")
        assert (await house.submit("m", WIDE).ended()).error is None


@on_loop
async def test_what_outlasts_the_drain_is_answered_unavailable(tmp_path: Path) -> None:
    async with House(tmp_path, drain_seconds=0.02) as house:
        house.put("m", models.slow(60), ONE_SLOT)
        await house.catalog.load_all()
        accepted = [house.submit("m", WIDE) for _ in range(30)]
        await house.catalog.unload("m")

        assert all(answer.times == 1 for answer in accepted)
        assert isinstance(accepted[-1].error, Draining)
        assert len(house.seen) == 30
        assert house.index() == [("m", "1", "UNAVAILABLE")]


@on_loop
async def test_unloading_what_is_not_there_is_refused_and_twice_is_harmless(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        with pytest.raises(UnknownModel):
            await house.catalog.unload("absent")
        await house.catalog.unload("m")
        await house.catalog.unload("m")
        assert house.index() == [("m", "1", "UNAVAILABLE")]


@pytest.mark.parametrize("change", ["unload", "reload"])
@on_loop
async def test_memory_of_a_model_that_is_gone_comes_back(tmp_path: Path, change: str) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2), 'devices = ["CPU", "AUTO:CPU"]')
        await house.catalog.load_all()
        for n in range(20):
            assert (await house.submit("m", [n] * 4).ended()).error is None
        pools = house.pools("m")
        compiled = [weakref.ref(pool()._model) for pool in pools]  # type: ignore[union-attr]
        if change == "unload":
            await house.catalog.unload("m")
        else:
            await house.catalog.load("m")
        # The worker thread that closed them lets go a moment after it has said so.
        await until(lambda: gone(pools) and gone(compiled))


# -- the end -------------------------------------------------------------------------


@on_loop
async def test_draining_waits_for_every_accepted_request(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.slow(60), ONE_SLOT)
        house.put("n", models.scaled(2))
        await house.catalog.load_all()
        assert await house.catalog.drain(10)
        accepted = [house.submit("m", WIDE), house.submit("m", WIDE), house.submit("n")]
        assert await house.catalog.drain(10)
        assert [answer.error for answer in accepted] == [None] * 3


@on_loop
async def test_closing_answers_what_is_left_and_may_be_repeated(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.slow(600), ONE_SLOT)
        await house.catalog.load_all()
        pools = house.pools("m")
        accepted = [house.submit("m", WIDE) for _ in range(5)]
        assert not await house.catalog.drain(0.001)
        await house.catalog.close()
        await house.catalog.close()

        assert [type(answer.error) for answer in accepted] == [Draining] * 5
        assert [answer.times for answer in accepted] == [1] * 5
        assert [pool().in_flight for pool in pools] == [0]  # type: ignore[union-attr]


def test_a_state_is_left_only_for_one_the_table_names() -> None:
    model_version = ModelVersion("m", 1)
    with pytest.raises(RuntimeError, match="model 'm' can't go from LOADING to UNLOADING"):
        model_version.move(ModelState.UNLOADING)
    assert model_version.state is ModelState.LOADING


# -- reloading -----------------------------------------------------------------------


@on_loop
async def test_a_reload_serves_what_the_repository_holds_now_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        for name in ("same", "changed", "gone", "settings"):
            house.put(name, models.scaled(2))
        await house.catalog.load_all()
        before = {model_version.name: deployment for model_version, deployment in house.catalog.serving()}

        house.put("changed", models.scaled(3))
        house.put("new", models.scaled(4))
        (tmp_path / "settings" / "model.toml").write_text("[queue]\nmax_length = 7")
        shutil.rmtree(tmp_path / "gone")
        await house.catalog.reload()

        assert [await house.times(name) for name in ("same", "changed", "new", "settings")] == [2, 3, 4, 2]
        assert isinstance(house.refusal("gone"), UnknownModel)
        assert house.index() == [(name, "1", "READY") for name in ("changed", "new", "same", "settings")]
        after = {model_version.name: deployment for model_version, deployment in house.catalog.serving()}
        assert {name for name in after if after[name] is before.get(name)} == {"same"}


@on_loop
async def test_a_reload_loads_the_new_version_and_not_the_old_one_again(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(1), '[versions]\npolicy = "all"')
        await house.catalog.load_all()
        ((_, first),) = house.catalog.serving()
        house.put("m", models.scaled(2), '[versions]\npolicy = "all"', version=2)
        await house.catalog.reload()
        assert next(deployment for _, deployment in house.catalog.serving()) is first
        assert [await house.times("m", version) for version in ("1", "2", "")] == [1, 2, 2]


@on_loop
async def test_a_reload_that_fails_leaves_the_old_one_serving_and_is_tried_again_by_the_next(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        house.put("n", models.scaled(2))
        await house.catalog.load_all()
        house.put("m", b"no model")
        house.put("n", models.scaled(2), "no_such_key = 1")
        await house.catalog.reload()
        assert [await house.times(name) for name in ("m", "n")] == [2, 2]
        assert house.reason("m").startswith("version on disk not served: model 'm' version 1 failed to load")
        assert house.catalog.loads["m", "failed"] == house.catalog.loads["n", "failed"] == 1
        await house.catalog.reload()
        assert house.catalog.loads["m", "failed"] == 2
        house.put("m", models.scaled(3))
        house.put("n", models.scaled(4))
        await house.catalog.reload()
        assert [await house.times(name) for name in ("m", "n")] == [3, 4]
        assert house.reason("m") == ""


@on_loop
async def test_what_a_client_unloaded_stays_so_until_its_files_change(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        await house.catalog.unload("m")
        await house.catalog.reload()
        assert house.index() == [("m", "1", "UNAVAILABLE")]
        house.put("m", models.scaled(3))
        await house.catalog.reload()
        assert await house.times("m") == 3


@on_loop
async def test_a_repository_that_can_not_be_read_changes_nothing(tmp_path: Path) -> None:
    async with House(tmp_path / "models") as house:
        house.put("m", models.scaled(2))
        await house.catalog.load_all()
        (tmp_path / "models").rename(tmp_path / "elsewhere")
        with pytest.raises(RepositoryError):
            await house.catalog.reload()
        assert await house.times("m") == 2
