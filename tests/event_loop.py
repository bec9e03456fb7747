"""Tests that are coroutines."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from inferd.transport.event_loop import QueueEventLoop

P = ParamSpec("P")
T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """What ``main`` returns, run on an event loop as the daemon's, which gRPC servers need."""
    with asyncio.Runner(loop_factory=QueueEventLoop) as runner:
        return runner.run(main)


def on_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """``test`` on an event loop of its own; one that hangs fails instead of holding up the run."""

    @wraps(test)
    def within(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120):
                await test(*args, **kwargs)

        run(bounded())

    return within


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until ``condition`` holds."""
    while not condition():  # noqa: ASYNC110 - what is waited for is plain state of the code under test
        await asyncio.sleep(0)
