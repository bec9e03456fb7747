"""A closed loop: a fixed number of clients, each of which sends its next request once the last one is answered."""

import asyncio
import math
import time
from contextlib import AsyncExitStack
from itertools import cycle, islice

import grpc

from benchmarks.open_loop import METHOD, connected


async def capacity(
    target: str, request: bytes, concurrency: int, seconds: float, windows: int = 3, warm_up: float = 2.0
) -> float:
    """The best rate of responses, per second, over ``windows`` of ``seconds`` one after the other.

    The first begins after ``warm_up`` seconds of the same load. ``concurrency`` must keep every infer request busy
    while responses are on their way, and the model must not refuse: any status but OK raises an ExceptionGroup of
    grpc.aio.AioRpcError.
    """
    counts = [0] * windows
    async with AsyncExitStack() as stack:
        senders = [channel.unary_unary(METHOD) for channel in await connected(stack, target)]
        start = time.monotonic() + warm_up
        end = start + windows * seconds

        async def ask(send: grpc.aio.UnaryUnaryMultiCallable) -> None:
            while time.monotonic() < end:
                await send(request)
                window = math.floor((time.monotonic() - start) / seconds)
                if 0 <= window < windows:
                    counts[window] += 1

        async with asyncio.TaskGroup() as group:
            for send in islice(cycle(senders), concurrency):
                group.create_task(ask(send))
    return max(counts) / seconds
