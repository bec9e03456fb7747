"""A client process that asks in every way until it is killed: well, badly, too late, too much, on streams.

Usage: python -m tests.system.mixed_load TARGET
"""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests import models
from tests.engine import models as small
from tests.system import echo_models, state_models
from tests.system.wire import connect, echo, method, request, steps

OBJECTIVE = 0.1
"""Seconds, of the model ``strict``."""
QUEUE_LENGTH = 3
"""Requests that may wait for ``queued``."""
BURST = 30


def write(root: Path) -> Path:
    """The repository that is asked; gives ``root`` back."""
    models.save(models.identity(DType.INT64, [-1]), root, "echo")
    models.save(models.sum_and_difference([-1, 2]), root, "rows", settings="[batching]\nmax_size = 8")
    objective = f"[objective]\nlatency_slo = {OBJECTIVE}\n"
    models.save(echo_models.steps(), root, "strict", settings=echo_models.serial(64) + objective)
    models.save(echo_models.steps(), root, "queued", settings=echo_models.serial(QUEUE_LENGTH))
    models.save(echo_models.picky(), root, "picky", settings=echo_models.serial(64) + "[warmup]\nruns = 0\n")
    models.save(small.stateful(), root, "inner", settings="[sequences]\nmax_active = 8\n")
    broken = root / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.xml").write_text('<?xml version="1.0"?><net name="broken" version="11"><layers/></net>')
    return root


async def good(infer: Any, _: Any) -> None:
    trace = f"00-{random.randbytes(16).hex()}-{random.randbytes(8).hex()}-01"
    calls = [infer(echo(range(count)), metadata=(("traceparent", trace),)) for count in range(1, 9)]
    calls += [infer(steps(10, model="strict")) for _ in range(3)]
    await codes(calls)


async def bad(infer: Any, _: Any) -> None:
    failing = request("picky", {"x": np.zeros(4, np.float32), "shape": np.array([3, 3], np.int64)})
    await codes(
        [infer(one) for one in (request("echo", {}), request("no such model", {}), request("broken", {}), failing)]
    )


async def late_or_given_up(infer: Any, _: Any) -> None:
    late = infer(steps(500, model="queued", parameters={"timeout": 20_000}))
    given_up = infer(steps(500, model="queued"))
    await late.code()
    given_up.cancel()
    await given_up.code()


async def too_much(infer: Any, _: Any) -> None:
    await codes([infer(steps(50, model=model)) for model in ("queued", "strict") for _ in range(BURST)])


async def streamed(_: Any, stream: Any) -> None:
    both = np.ones((2, 2), np.float32)
    call = stream()
    for _ in range(10):
        await call.write(request("rows", {"left": both, "right": both}))
    for number in range(10):
        await call.read()
        await call.write(state_models.add(1, "heard of", start=number == 0))
    for _ in range(10):
        await call.read()
    await call.done_writing()
    await call.code()


async def codes(calls: list[Any]) -> None:
    for call in calls:
        await call.code()


WAYS: tuple[tuple[Callable[[Any, Any], Awaitable[None]], float], ...] = (
    (good, 0.05),
    (bad, 0.1),
    (late_or_given_up, 0.3),
    (too_much, 0.5),
    (streamed, 0.2),
)
"""What is done over and over, and the seconds of rest between."""


async def main(target: str) -> None:
    async with connect(target) as channel:
        infer, stream = method(channel, "ModelInfer"), method(channel, "ModelStreamInfer")
        load = method(channel, "RepositoryModelLoad")

        async def again(way: Callable[[Any, Any], Awaitable[None]], rest: float) -> None:
            while True:
                await way(infer, stream)
                await asyncio.sleep(rest)

        async def loads() -> None:
            while True:
                await load(pb.RepositoryModelLoadRequest(model_name="echo")).code()
                await asyncio.sleep(2)

        await asyncio.gather(loads(), *(again(way, rest) for way, rest in WAYS))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
