"""Requests of many clients run together, and each gets the rows it sent."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from tests import models
from tests.effort import examples
from tests.system import echo_models, heavy_models
from tests.system.daemon import Daemon
from tests.system.gauges import wait_until
from tests.system.heavy_models import WIDTH
from tests.system.wire import OK, connect, method, outcome, request

DEADLINE = StatusCode.DEADLINE_EXCEEDED

pytestmark = pytest.mark.system

MOST = 8
CLIENTS = 24
EACH = examples(25)
BATCHING = f"[batching]\nmax_size = {MOST}\n"

Rows = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    """Each test has a model of its own, as it looks at the model's statistics; all run one at a time."""
    repository, settings = tmp_path_factory.mktemp("repository"), BATCHING + echo_models.serial(1024)
    for name in ("mixed", "threes", "deserted"):
        models.save(heavy_models.doubling(), repository, name, settings=settings)
    models.save(heavy_models.doubling(), repository, "alone", settings=settings.replace("\n", "\nenabled = false\n", 1))
    models.save(heavy_models.widening(), repository, "fragile", settings=settings)
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def rows(chance: np.random.Generator, count: int) -> Rows:
    return chance.standard_normal((count, WIDTH), np.float32)


def doubled(answer: pb.ModelInferResponse, x: Rows) -> bool:
    """Whether the answer is that to ``x``, bit by bit."""
    return list(answer.outputs[0].shape) == list(x.shape) and answer.raw_output_contents[0] == (x + x).tobytes()


async def each(work: Callable[[Any, int], Awaitable[Any]], target: str, clients: int = CLIENTS) -> list[Any]:
    """What ``work`` gives for so many clients at once, each with a connection of its own."""

    async def one(number: int) -> Any:
        async with connect(target) as channel:
            return await work(method(channel, "ModelInfer"), number)

    return await asyncio.gather(*map(one, range(clients)))


async def statistics(channel: grpc.aio.Channel, model: str) -> pb.ModelStatistics:
    answer = await method(channel, "ModelStatistics")(pb.ModelStatisticsRequest(name=model))
    return answer.model_stats[0]


def statistics_of(daemon: Daemon, model: str) -> pb.ModelStatistics:
    async def ask() -> pb.ModelStatistics:
        async with connect(daemon.grpc) as channel:
            return await statistics(channel, model)

    return asyncio.run(ask())


def sizes(seen: pb.ModelStatistics) -> dict[int, int]:
    """How many runs had so many rows."""
    return {batch.batch_size: batch.compute_infer.count for batch in seen.batch_stats}


async def ask_for(infer: Any, model: str, counts: Sequence[int], seed: int) -> int:
    """Send random rows, so many a request, one request after another; how many answers are right."""
    chance, right = np.random.default_rng(seed), 0
    for count in counts:
        x = rows(chance, count)
        right += doubled(await infer(request(model, {"x": x})), x)
    return right


def test_many_clients_share_runs_and_each_gets_its_own_rows(daemon: Daemon, figure: Callable[[str], None]) -> None:
    counts = [1 + turn % 3 for turn in range(EACH)]

    right = asyncio.run(each(lambda infer, number: ask_for(infer, "mixed", counts, number), daemon.grpc))

    assert right == [EACH] * CLIENTS
    seen = statistics_of(daemon, "mixed")
    assert seen.inference_stats.success.count == CLIENTS * EACH
    assert seen.inference_count == CLIENTS * sum(counts)
    assert seen.execution_count < CLIENTS * EACH
    assert max(sizes(seen)) <= MOST
    assert sum(size * runs for size, runs in sizes(seen).items()) == seen.inference_count
    assert sum(sizes(seen).values()) == seen.execution_count
    figure(f"batching: {CLIENTS * EACH} requests in {seen.execution_count} runs, of rows: {sizes(seen)}")


def test_a_batch_of_a_clients_own_joins_others_whole(daemon: Daemon) -> None:
    right = asyncio.run(each(lambda infer, number: ask_for(infer, "threes", [3] * EACH, number), daemon.grpc))

    assert right == [EACH] * CLIENTS
    seen = sizes(statistics_of(daemon, "threes"))
    # Two fit into 8 rows, and none is divided.
    assert set(seen) == {3, 6}, seen


def test_where_batching_is_off_clients_batches_run_as_they_come(daemon: Daemon) -> None:
    right = asyncio.run(each(lambda infer, number: ask_for(infer, "alone", [1, 2, 8] * 3, number), daemon.grpc))

    assert right == [9] * CLIENTS
    seen = statistics_of(daemon, "alone")
    assert seen.execution_count == CLIENTS * 9
    assert sizes(seen) == dict.fromkeys((1, 2, 8), CLIENTS * 3)


def test_neighbours_that_give_up_do_not_hurt(daemon: Daemon, figure: Callable[[str], None]) -> None:
    async def steady(infer: Any, number: int) -> Counter[StatusCode]:
        assert await ask_for(infer, "deserted", [1 + number % 2] * EACH, number) == EACH
        return Counter({OK: EACH})

    async def fickle(infer: Any, number: int) -> Counter[StatusCode]:
        chance, ended = random.Random(number), Counter[StatusCode]()
        for turn in range(EACH):
            x = rows(np.random.default_rng(1000 * number + turn), 1 + turn % 3)
            if turn % 2:
                call = infer(request("deserted", {"x": x}, parameters={"timeout": chance.randint(100, 20_000)}))
            else:
                call = infer(request("deserted", {"x": x}))
                await asyncio.wait({asyncio.ensure_future(call.code())}, timeout=chance.random() * 0.02)
                call.cancel()
            ended[code := await call.code()] += 1
            # What leaves little time may be refused for that.
            assert code in ({OK, DEADLINE, StatusCode.RESOURCE_EXHAUSTED} if turn % 2 else {OK, StatusCode.CANCELLED})
            assert code is not OK or doubled(await call, x)
        return ended

    async def work(infer: Any, number: int) -> Counter[StatusCode]:
        return await (steady if number % 2 else fickle)(infer, number)

    ended = sum(asyncio.run(each(work, daemon.grpc)), Counter[StatusCode]())

    assert ended[OK] >= CLIENTS // 2 * EACH
    assert min(ended[StatusCode.CANCELLED], ended[DEADLINE]) > 0
    assert ended.total() == CLIENTS * EACH
    wait_until(daemon, "inferd_infer_requests_busy", "deserted", 0)
    assert max(sizes(statistics_of(daemon, "deserted"))) > 2
    figure(f"batching: {', '.join(f'{n} {code.name}' for code, n in ended.most_common())} among neighbours")


def test_a_request_that_fails_does_not_take_its_neighbours_with_it(daemon: Daemon) -> None:
    def message(x: Rows, by: int) -> pb.ModelInferRequest:
        return request("fragile", {"x": x, "by": np.full((len(x), 1), by, np.int64)})

    async def work(infer: Any, number: int) -> int:
        chance, right = np.random.default_rng(number), 0
        for turn in range(EACH):
            x = rows(chance, 1)
            # One client in four spoils every run that it takes part in.
            call = infer(message(x, by=1 if number % 4 == 0 else 0))
            if number % 4:
                right += (await call).raw_output_contents[0] == x.tobytes()
            else:
                code, sentence = await outcome(call)
                right += code is StatusCode.INTERNAL and sentence.startswith("model 'fragile': inference failed: ")
                assert code is StatusCode.INTERNAL, (turn, code, sentence)
        return right

    assert asyncio.run(each(work, daemon.grpc)) == [EACH] * CLIENTS
    seen = statistics_of(daemon, "fragile")
    assert seen.inference_count == CLIENTS * 3 // 4 * EACH
    assert seen.inference_stats.fail.count == CLIENTS // 4 * EACH
