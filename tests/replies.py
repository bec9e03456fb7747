"""A reply slot that keeps what it was given."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from inferd.errors import InferdError
from inferd.requests import Request
from inferd.tensors import Tensor
from tests.engine.models import numbers, tensor


class Answer:
    """What became of one request; ``times`` counts the endings, of which there must be one."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.outputs: list[np.ndarray[Any, Any]] = []
        self.error: InferdError | None = None
        self.times = 0
        self._breaks = breaks
        self._ended = asyncio.Event()

    def answer(self, outputs: Sequence[Tensor]) -> None:
        if self._breaks:
            raise TypeError("this answer can't be encoded")
        self.times += 1
        self.outputs = [numbers(t).copy() for t in outputs]
        self._ended.set()

    def fail(self, error: InferdError) -> None:
        self.times += 1
        self.error = error
        self._ended.set()

    async def ended(self) -> "Answer":
        await self._ended.wait()
        return self


def ask(*inputs: Any, deadline: int | None = None, priority: int = 0, breaks: bool = False) -> tuple[Request, Answer]:
    """A request with ``inputs``, tensors or numbers (1 .. 4 if none), for the first output, and its answer to be."""
    tensors = tuple(i if isinstance(i, Tensor) else tensor(i) for i in inputs or ([1, 2, 3, 4],))
    answer = Answer(breaks=breaks)
    nbytes = sum(len(t.data) for t in tensors)
    return Request("m", 1, tensors, (0,), answer, deadline=deadline, priority=priority, nbytes=nbytes), answer


def row(*inputs: Any, **more: Any) -> tuple[Request, Answer]:
    """As :func:`ask`, and it may be batched: ``inputs`` are tensors or the one number of a row."""
    request, answer = ask(*(i if isinstance(i, Tensor) else [[i]] for i in inputs), **more)
    request.batch_key, request.rows = (), request.inputs[0].shape[0]
    return request, answer
