"""Requests for the scheduler: a deadline, a priority, a size, a batch key, a client, a place in a sequence."""

from collections.abc import Hashable, Sequence

from inferd.errors import InferdError
from inferd.requests import Request, SequenceStep, Stages
from inferd.tensors import Tensor


class Unanswered:
    """A reply slot that the scheduler must not use."""

    def answer(self, _: Sequence[Tensor]) -> None:
        raise AssertionError("the scheduler answers no request")

    def fail(self, _: InferdError) -> None:
        raise AssertionError("the scheduler answers no request")


def work(
    deadline: int | None = None,
    priority: int = 0,
    nbytes: int = 0,
    rows: int = 1,
    batch_key: Hashable | None = None,
    client: str = "",
    step: SequenceStep | None = None,
    received: int = 0,
) -> Request:
    return Request(
        "m",
        1,
        (),
        (),
        Unanswered(),
        deadline=deadline,
        priority=priority,
        nbytes=nbytes,
        rows=rows,
        batch_key=batch_key,
        client=client,
        step=step,
        stages=Stages(received=received),
    )
