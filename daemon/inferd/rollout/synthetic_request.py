"""Requests of inferd's own to a model version: to compare answers, to time runs, to see whether it answers at all."""

import asyncio
import time
from collections.abc import Hashable, Sequence

from inferd.dispatcher import Dispatcher
from inferd.errors import Cancelled, InferdError
from inferd.requests import Reply, Request, SequenceStep, Stages
from inferd.tensors import Signature, Tensor

# A model too busy for such a request is let off; one that hangs is given up.
ANSWER_SECONDS = 60.0
_CLIENT = "inferd itself"


def synthetic_request(
    signature: Signature,
    inputs: Sequence[Tensor],
    reply: Reply,
    *,
    step: SequenceStep | None = None,
    batch_key: Hashable | None = None,
    received: int | None = None,
    shadow: bool = True,
) -> Request:
    """A request for all outputs of a model of ``signature``, ``received`` now if nothing else is given. Unless it is a
    ``shadow``, it is counted as a client's. Raises InvalidRequest where the rows of ``inputs`` differ."""
    return Request(
        "",
        0,
        tuple(inputs),
        tuple(range(len(signature.outputs))),
        reply,
        nbytes=sum(len(t.data) for t in inputs),
        rows=signature.rows_of(inputs),
        batch_key=batch_key,
        client=_CLIENT if shadow else "",
        step=step,
        shadow=shadow,
        stages=Stages(received=time.monotonic_ns() if received is None else received),
    )


def own_sequence(signature: Signature, purpose: str) -> SequenceStep | None:
    """A sequence of one request, None where the model has none. No client can mean it: the protocol takes no name that
    long."""
    return SequenceStep(f"{purpose} " * 100, start=True, end=True) if signature.in_sequences else None


class SyntheticReply:
    """The reply slot of such a request: ``outputs`` are copies, and none where they are not to be kept."""

    def __init__(self, *, keep: bool = True) -> None:
        self._keep = keep
        self.outputs: asyncio.Future[list[Tensor]] = asyncio.get_running_loop().create_future()

    def answer(self, outputs: Sequence[Tensor]) -> None:
        if not self.outputs.done():
            self.outputs.set_result([t.copied() for t in outputs] if self._keep else [])

    def fail(self, error: InferdError) -> None:
        if not self.outputs.done():
            self.outputs.set_exception(error)


async def send(dispatcher: Dispatcher, request: Request, reply: SyntheticReply, seconds: float) -> list[Tensor]:
    """What ``dispatcher`` answers to ``request`` in ``reply``. Raises its error, and Cancelled where it gives no answer
    for so many ``seconds``: then it is told to let it go."""
    dispatcher.submit(request)
    try:
        async with asyncio.timeout(seconds):
            return await reply.outputs
    except TimeoutError:
        raise Cancelled("") from None
    finally:
        if not reply.outputs.done() or reply.outputs.cancelled():
            dispatcher.cancel(request)


async def answer(dispatcher: Dispatcher, signature: Signature, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What ``dispatcher`` answers to ``inputs``, in a request that is counted nowhere. Raises its error, and
    Cancelled where it gives no answer for a minute."""
    reply = SyntheticReply()
    request = synthetic_request(signature, inputs, reply, step=own_sequence(signature, "shadow"))
    return await send(dispatcher, request, reply, ANSWER_SECONDS)


async def timed(dispatcher: Dispatcher, signature: Signature, inputs: Sequence[Tensor]) -> Stages:
    """When the stages of such a request were. Raises as :func:`answer`."""
    reply = SyntheticReply(keep=False)
    request = synthetic_request(signature, inputs, reply, step=own_sequence(signature, "shadow"))
    await send(dispatcher, request, reply, ANSWER_SECONDS)
    return request.stages
