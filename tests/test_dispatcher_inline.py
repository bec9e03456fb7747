"""A model that runs inline: it answers before submit returns, and otherwise works like any other."""

import asyncio
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from inferd.engine.runtime import ov
from inferd.errors import DeadlinePassed, InferenceFailed, InternalFault, InvalidRequest
from inferd.scheduling.fairness import SharedDevice
from inferd.tensors import DType, Placed, Tensor
from tests.dispatchers import RealBench, load
from tests.engine import models
from tests.engine.models import tensor
from tests.event_loop import on_loop
from tests.replies import ask
from tests.test_dispatcher_shared import Region, shared

INLINE = '[execution]\npath = "inline"\n'
UNTRIED = INLINE + "[warmup]\nruns = 0\n"


def bench(tmp_path: Path, network: ov.Model | None = None, settings: str = INLINE) -> RealBench:
    return RealBench(load(network or models.scaled(2), tmp_path, settings))


@on_loop
async def test_a_request_is_answered_before_submit_returns_and_recorded_with_its_stages(tmp_path: Path) -> None:
    house = bench(tmp_path)
    request, answer = ask([1, 2, 3, 4])
    request.stages.received = time.monotonic_ns()
    house.dispatcher.submit(request)
    assert answer.times == 1
    assert answer.outputs[0].tolist() == [2, 4, 6, 8]
    (seen,) = house.seen
    assert (seen.outcome, seen.leader, seen.batch_rows) == ("ok", True, 1)
    stages = ("received", "queued", "started", "submitted", "computed", "taken", "copied", "answered")
    reached = [getattr(seen.stages, stage) for stage in stages]
    assert reached == sorted(reached)
    assert all(reached)
    assert (house.dispatcher.completed, house.dispatcher.scheduler.running, house.dispatcher.scheduler.in_flight) == (
        1,
        0,
        0,
    )
    assert house.dispatcher.busy_ns > 0
    assert house.dispatcher.scheduler.service_time > 0
    await house.dispatcher.drained()
    house.loaded.close()


@on_loop
async def test_a_run_that_fails_is_answered_so_and_the_next_is_well(tmp_path: Path) -> None:
    house = bench(tmp_path, models.broadcasting(), UNTRIED)
    bad, refused = ask([1, 2, 3, 4], tensor([3, 2], DType.INT64))
    good, answer = ask([1, 2, 3, 4], tensor([1, 4], DType.INT64))
    house.dispatcher.submit(bad)
    house.dispatcher.submit(good)
    assert isinstance(refused.error, InferenceFailed)
    # Its shapes are not fixed, so the model is rebuilt first.
    await answer.ended()
    assert answer.outputs[0].ravel().tolist() == [1, 2, 3, 4]
    assert [seen.outcome for seen in house.seen] == ["internal", "ok"]
    assert (house.dispatcher.device_stats[0].succeeded, house.dispatcher.device_stats[0].failed) == (1, 1)
    house.loaded.close()


@on_loop
async def test_an_answer_that_can_not_be_encoded_affects_no_other_request(tmp_path: Path) -> None:
    house = bench(tmp_path)
    broken, refused = ask([1, 2, 3, 4], breaks=True)
    house.dispatcher.submit(broken)
    assert isinstance(refused.error, InternalFault)
    request, answer = ask([1, 2, 3, 4])
    house.dispatcher.submit(request)
    assert answer.outputs[0].tolist() == [2, 4, 6, 8]
    house.loaded.close()


@on_loop
async def test_a_deadline_that_has_passed_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    house = bench(tmp_path)
    request, _ = ask([1, 2, 3, 4], deadline=time.monotonic_ns() - 1)
    with pytest.raises(DeadlinePassed):
        house.dispatcher.submit(request)
    assert house.dispatcher.completed == 0
    house.loaded.close()


@on_loop
async def test_what_had_to_wait_for_its_turn_on_the_device_runs_once_it_may(tmp_path: Path) -> None:
    device = SharedDevice()
    # A rival has the whole device and waits for more: every new request has to wait, too.
    rival = device.join(1.0, 1.0)
    house = RealBench(load(models.scaled(2), tmp_path, INLINE), share=device.join(1.0, 1.0))
    now = time.monotonic_ns()
    rival.want(True, now)
    rival.started(now)
    asked = [ask([n, 0, 0, 0]) for n in range(50)]
    for request, _ in asked:
        house.dispatcher.submit(request)
    ended = [answer.times for _, answer in asked]
    rival.ended(time.monotonic_ns())
    rival.want(False, time.monotonic_ns())
    rival.wake_others(time.monotonic_ns())
    answers = [await answer.ended() for _, answer in asked]
    assert set(ended) <= {0, 1}
    assert [float(answer.outputs[0][0]) for answer in answers] == [2.0 * n for n in range(50)]
    assert [answer.times for answer in answers] == [1] * 50
    assert house.dispatcher.completed == 50
    await house.dispatcher.drained()
    house.loaded.close()


@on_loop
async def test_draining_waits_for_nothing_where_nothing_is_in_flight(tmp_path: Path) -> None:
    house = bench(tmp_path)
    for n in range(10):
        request, _ = ask([n, 0, 0, 0])
        house.dispatcher.submit(request)
    async with asyncio.timeout(60):
        await house.dispatcher.drained()
    assert len(house.seen) == 10
    house.loaded.close()


@on_loop
async def test_what_is_kept_to_compare_answers_by_is_no_view_of_a_message(tmp_path: Path) -> None:
    house = bench(tmp_path)
    request, _ = ask(Tensor(DType.FP32, (4,), memoryview(bytes(1 << 20))[: 4 * 4]))
    house.dispatcher.submit(request)
    (kept,) = house.dispatcher.samples
    assert pickle.loads(pickle.dumps(kept)) == (Tensor(DType.FP32, (4,), bytes(16)),)
    house.loaded.close()


@on_loop
async def test_memory_that_a_client_shares_is_used_for_its_run_alone(tmp_path: Path) -> None:
    house = bench(tmp_path)
    given, region = shared(tensor([1, 2, 3, 4]))
    target = Region(bytes(16))
    request, answer = ask(given)
    request.shared, request.into = True, ((0, Placed("t", 0, 16, target)),)
    house.dispatcher.submit(request)
    assert answer.times == 1
    assert np.frombuffer(target.data, np.float32).tolist() == [2, 4, 6, 8]
    after, other = ask([5, 5, 5, 5])
    house.dispatcher.submit(after)
    assert other.outputs[0].tolist() == [10, 10, 10, 10]
    assert np.frombuffer(target.data, np.float32).tolist() == [2, 4, 6, 8]
    assert np.frombuffer(region.data, np.float32).tolist() == [1, 2, 3, 4]
    house.loaded.close()


@pytest.mark.parametrize("which", ["input", "output"])
@on_loop
async def test_what_a_client_shared_and_took_away_fails_that_request_alone(which: str, tmp_path: Path) -> None:
    house = bench(tmp_path)
    given, region = shared(tensor([1, 2, 3, 4]))
    target = Region(bytes(16))
    request, answer = ask(given)
    request.shared, request.into = True, ((0, Placed("t", 0, 16, target)),)
    (region if which == "input" else target).gone = True
    house.dispatcher.submit(request)
    assert isinstance(answer.error, InvalidRequest)
    after, other = ask([5, 5, 5, 5])
    house.dispatcher.submit(after)
    assert other.outputs[0].tolist() == [10, 10, 10, 10]
    assert [seen.outcome for seen in house.seen] == ["invalid", "ok"]
    assert house.dispatcher.device_stats[0].failed == 0
    house.loaded.close()
