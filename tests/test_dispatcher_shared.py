"""Requests with inputs and outputs in a client's memory: it is used during the run and never after."""

import pytest

from inferd.errors import InvalidRequest
from inferd.requests import Request
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.rules import SchedulerRules
from inferd.tensors import Placed, Tensor
from tests.dispatchers import ROOM, Bench
from tests.engine.models import tensor
from tests.event_loop import on_loop, until
from tests.replies import Answer, ask, row


class Region:
    """Memory with ``data`` in it, until it is ``gone``."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.gone = False

    def read(self, at: int, target: memoryview) -> None:
        self._check()
        target[:] = self.data[at : at + len(target)]

    def write(self, at: int, data: bytes | memoryview) -> None:
        self._check()
        self.data[at : at + memoryview(data).nbytes] = data

    def view(self, at: int, nbytes: int) -> memoryview | None:
        self._check()
        return memoryview(self.data)[at : at + nbytes]

    def _check(self) -> None:
        if self.gone:
            raise InvalidRequest("", "region 'r' is gone")


def shared(like: Tensor) -> tuple[Tensor, Region]:
    """The same tensor, in a client's memory."""
    assert isinstance(like.data, bytes)
    region = Region(like.data)
    return Tensor(like.dtype, like.shape, Placed("r", 0, len(like.data), region)), region


def asked() -> tuple[Request, Answer, Region]:
    """A request whose input is shared."""
    given, region = shared(tensor([1, 2, 3, 4]))
    request, answer = ask(given)
    request.shared = True
    return request, answer, region


@pytest.mark.parametrize("output", [False, True])
@on_loop
async def test_memory_is_lent_for_the_run_alone(output: bool) -> None:
    bench = Bench(1)
    (slot,) = bench.slots[0]
    request, answer, region = asked()
    if output:
        request.into = ((0, Placed("r", 0, 16, region)),)
    bench.dispatcher.submit(request)
    assert slot.shared
    assert slot.into == request.into
    slot.complete()
    assert (await answer.ended()).outputs[0].tolist() == [1, 2, 3, 4]
    assert not slot.shared
    bench.submit()
    assert not slot.shared
    slot.complete()
    await bench.dispatcher.drained()


@pytest.mark.parametrize("how", ["fails", "is given up", "can't begin"])
@on_loop
async def test_memory_is_given_back_however_the_run_ends(how: str) -> None:
    bench = Bench(1)
    (slot,) = bench.slots[0]
    request, answer, _ = asked()
    if how == "can't begin":
        slot.refuses_to_start = "busy"
    bench.dispatcher.submit(request)
    if how == "fails":
        slot.fail("no")
    elif how == "is given up":
        bench.dispatcher.cancel(request)
    await until(lambda: not slot.shared)
    await bench.dispatcher.drained()
    assert (how == "is given up") == (answer.times == 0)
    bench.submit()
    slot.complete()
    await bench.dispatcher.drained()
    assert bench.outcomes()[-1] == "ok"


@on_loop
async def test_memory_that_is_gone_is_reported_to_its_client_and_harms_no_other() -> None:
    bench = Bench(1)
    bench.submit()
    request, answer, region = asked()
    bench.dispatcher.submit(request)
    (after,) = bench.submit()
    region.gone = True
    (slot,) = bench.slots[0]
    slot.complete()
    assert str((await answer.ended()).error) == "region 'r' is gone"
    # Its frames would keep the infer request, and the pool from being freed.
    assert answer.error is not None
    assert answer.error.__traceback__ is None
    slot.complete()
    assert (await after.ended()).error is None
    await bench.dispatcher.drained()
    assert sorted(bench.outcomes()) == ["invalid", "ok", "ok"]
    assert not slot.shared
    # It says nothing about the device.
    assert (bench.dispatcher.device_stats[0].succeeded, bench.dispatcher.device_stats[0].failed) == (2, 0)


@on_loop
async def test_of_requests_that_run_together_only_the_one_whose_memory_is_gone_fails() -> None:
    bench = Bench(1, rules=SchedulerRules(ROOM, BatchRule(max_rows=8)), service_times=[1e6], gains=[(8, 2e6)])
    (slot,) = bench.slots[0]
    bench.submit()
    rows = [row(shared(tensor([[n]]))[0] if n else tensor([[n]])) for n in range(4)]
    for request, _ in rows:
        request.shared = isinstance(request.inputs[0].data, Placed)
        bench.dispatcher.submit(request)
    gone = rows[2][0].inputs[0].data
    assert isinstance(gone, Placed)
    assert isinstance(gone.memory, Region)
    gone.memory.gone = True
    while bench.running:
        # Joined they are copied, and never lent.
        assert not slot.shared or len(slot.written) == 1
        runs = slot.starts
        slot.complete()
        await until(lambda runs=runs: slot.starts > runs or not bench.dispatcher.scheduler.in_flight)  # type: ignore[misc]
    answers = [(await answer.ended()) for _, answer in rows]
    assert [a.outputs[0].tolist() if a.error is None else str(a.error) for a in answers] == [
        [[0]],
        [[1]],
        "region 'r' is gone",
        [[3]],
    ]
    assert not slot.shared


@on_loop
async def test_an_answer_that_does_not_go_where_it_should_is_the_clients_mistake() -> None:
    class Unfit(Answer):
        def answer(self, outputs: object) -> None:  # noqa: ARG002
            raise InvalidRequest("m", "output 'y' is 16 bytes")

    bench = Bench(1)
    answer = Unfit()
    request = Request("m", 1, (tensor([1, 2, 3, 4]),), (0,), answer, nbytes=16)
    bench.dispatcher.submit(request)
    bench.slots[0][0].complete()
    await answer.ended()
    assert isinstance(answer.error, InvalidRequest)
    assert answer.error.__traceback__ is None
    await bench.dispatcher.drained()
    assert bench.outcomes() == ["invalid"]


@on_loop
async def test_inputs_in_a_clients_memory_are_kept_as_nobodys_sample() -> None:
    bench = Bench(1)
    for _ in range(2):
        request, answer, _ = asked()
        bench.dispatcher.submit(request)
        bench.slots[0][0].complete()
        await answer.ended()
    assert not bench.dispatcher.samples
    await bench.dispatcher.drained()
