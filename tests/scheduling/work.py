"""Requests for the scheduler: a deadline, a priority, a size, a batch key, a client, a place in a sequence."""

from collections.abc import Hashable

from inferd.requests import NoReply, Request, SequenceStep, Stages


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
        NoReply(),
        deadline=deadline,
        priority=priority,
        nbytes=nbytes,
        rows=rows,
        batch_key=batch_key,
        client=client,
        step=step,
        stages=Stages(received=received),
    )
