"""Requests as the scheduler sees them: a deadline, a priority and a size."""

from collections.abc import Sequence

from inferd.errors import InferdError
from inferd.requests import Request
from inferd.tensors import Tensor


class Unanswered:
    """A reply slot that the scheduler has no business with."""

    def answer(self, _: Sequence[Tensor]) -> None:
        raise AssertionError("the scheduler answers nobody")

    def fail(self, _: InferdError) -> None:
        raise AssertionError("the scheduler answers nobody")


def work(deadline: int | None = None, priority: int = 0, nbytes: int = 0) -> Request:
    return Request("m", 1, (), (), Unanswered(), deadline=deadline, priority=priority, nbytes=nbytes)
