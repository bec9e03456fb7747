"""A storm of clients that give up: the others get their answers, every request is counted once, every slot returns."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.wire import OK, all_slots_usable, by_outcome, connect, counts, method, steps

pytestmark = pytest.mark.system

REQUESTS = 4000
# They fit into the infer requests and the queue of the model, even next to as many that were given up a moment ago.
AT_ONCE = 8


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = echo_models.write(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir), "--request-log", "all") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


class Storm:
    """Requests to `slots` of which some are wanted and the rest given up, each in one of several ways."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._infer = method(channel, "ModelInfer")
        self._stream = method(channel, "ModelStreamInfer")
        self._numbers = iter(range(REQUESTS))
        self.ended: dict[str, Counter[StatusCode]] = {}

    async def work(self, chance: random.Random) -> None:
        for number in self._numbers:
            act = chance.choice([self.wanted, self.cancelled, self.expired, self.timed_out, self.hung_up])
            code = await act(chance.randint(0, 20), f"{act.__name__}-{number}", chance)
            self.ended.setdefault(act.__name__, Counter())[code] += 1

    async def wanted(self, count: int, name: str, _: random.Random) -> StatusCode:
        answer = await self._infer(steps(count, name, model="slots"))
        assert (answer.id, list(answer.raw_output_contents)) == (name, [np.int32(count).tobytes()])
        return OK

    async def cancelled(self, count: int, name: str, chance: random.Random) -> StatusCode:
        call = self._infer(steps(count, name, model="slots"))
        await _a_while(call.code(), chance)
        call.cancel()
        return await call.code()

    async def expired(self, count: int, name: str, chance: random.Random) -> StatusCode:
        timeout = chance.choice([0.001, 0.01, 0.02])
        return await self._infer(steps(count, name, model="slots"), timeout=timeout).code()

    async def timed_out(self, count: int, name: str, _: random.Random) -> StatusCode:
        return await self._infer(steps(count, name, model="slots", parameters={"timeout": 1000})).code()

    async def hung_up(self, count: int, name: str, chance: random.Random) -> StatusCode:
        call = self._stream()
        await call.write(steps(count, name, model="slots"))
        await _a_while(call.code(), chance)
        call.cancel()
        return await call.code()


async def _a_while(end: Awaitable[StatusCode], chance: random.Random) -> None:
    """Until any moment between the first thought of a call and its answer."""
    await asyncio.wait({asyncio.ensure_future(end)}, timeout=chance.random() * 0.03)


def test_a_storm_of_clients_that_give_up_harms_no_other_client(daemon: Daemon, figure: Callable[[str], None]) -> None:
    async def storm() -> dict[str, Counter[StatusCode]]:
        async with connect(daemon.grpc) as channel:
            storm = Storm(channel)
            await asyncio.gather(*(storm.work(random.Random(seed)) for seed in range(AT_ONCE)))
            assert await all_slots_usable(method(channel, "ModelInfer"))
            return storm.ended

    ended = asyncio.run(storm())
    assert sum(codes.total() for codes in ended.values()) == REQUESTS
    # `wanted` compares its answers itself; here it is seen that the others ended as they should, and that they did.
    given_up = {"cancelled": StatusCode.CANCELLED, "hung_up": StatusCode.CANCELLED}
    given_up |= {"expired": StatusCode.DEADLINE_EXCEEDED, "timed_out": StatusCode.DEADLINE_EXCEEDED}
    # More is asked for than can be computed: what has a little more time than others may be refused for that.
    may_be_refused = {"expired", "timed_out"}
    for how, code in given_up.items():
        assert set(ended[how]) <= {code, OK, *([StatusCode.RESOURCE_EXHAUSTED] if how in may_be_refused else [])}, how
        assert ended[how][code] > 100, how
    codes = sum(ended.values(), Counter[StatusCode]())
    figure(f"cancellation: {', '.join(f'{n} {code.name}' for code, n in codes.most_common())}; all slots usable after")


def test_each_request_that_reached_the_server_is_counted_once_and_logged_once(daemon: Daemon) -> None:
    counted = by_outcome(counts(daemon))
    assert daemon.stop() == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in daemon.lines]
    assert [line for line in lines if "exception" in line or line["level"] == "error"] == [
        line for line in lines if (line.get("model"), line["event"]) == ("broken", "model load failed")
    ]
    requests = [line for line in lines if line["event"] == "request"]
    assert Counter(line["outcome"] for line in requests) == counted

    named = [line for line in requests if line["id"]]
    assert len({line["id"] for line in named}) == len(named) <= REQUESTS
    outcomes = Counter(line["outcome"] for line in named)
    assert set(outcomes) - {"overloaded"} == {"ok", "cancelled", "deadline"}
    assert min(outcomes[outcome] for outcome in ("ok", "cancelled", "deadline")) > 100, outcomes
    wanted = [line["outcome"] for line in named if line["id"].startswith("wanted-")]
    assert wanted == ["ok"] * len(wanted)
    # No deadline is mistaken for a cancellation where the server itself keeps it.
    assert {line["outcome"] for line in named if line["id"].startswith("timed_out-")} <= {
        "ok",
        "deadline",
        "overloaded",
    }
