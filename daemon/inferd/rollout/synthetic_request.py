"""Requests of our own to a model version, to see what it answers."""

import asyncio
import time
from collections.abc import Sequence

from inferd.dispatcher import Dispatcher
from inferd.errors import Cancelled, InferdError
from inferd.requests import Request, SequenceStep, Stages
from inferd.tensors import Signature, Tensor

# Whoever is too busy for such a request is let off; one that hangs is given up.
ANSWER_SECONDS = 60.0
# A sequence of our own: no client can mean it, as the protocol takes no name that long.
_SEQUENCE = "shadow " * 100


class SyntheticReply:
    """The reply slot of a request of our own: ``outputs`` are copies."""

    def __init__(self) -> None:
        self.outputs: asyncio.Future[list[Tensor]] = asyncio.get_running_loop().create_future()

    def answer(self, outputs: Sequence[Tensor]) -> None:
        if not self.outputs.done():
            self.outputs.set_result(
                [
                    Tensor(t.dtype, t.shape, t.data.tobytes() if isinstance(t.data, memoryview) else t.data)
                    for t in outputs
                ]
            )

    def fail(self, error: InferdError) -> None:
        if not self.outputs.done():
            self.outputs.set_exception(error)


async def answer(dispatcher: Dispatcher, signature: Signature, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What ``dispatcher`` answers to ``inputs``, in a request that is counted nowhere. Raises its error, and
    Cancelled where it gives no answer for a minute."""
    reply = SyntheticReply()
    await _ask(dispatcher, signature, inputs, reply)
    return reply.outputs.result()


async def timed(dispatcher: Dispatcher, signature: Signature, inputs: Sequence[Tensor]) -> Stages:
    """When the stages of such a request were. Raises as :func:`answer`."""
    return await _ask(dispatcher, signature, inputs, SyntheticReply())


async def _ask(dispatcher: Dispatcher, signature: Signature, inputs: Sequence[Tensor], reply: SyntheticReply) -> Stages:
    request = Request(
        "",
        0,
        tuple(inputs),
        tuple(range(len(signature.outputs))),
        reply,
        nbytes=sum(len(t.data) for t in inputs),
        rows=signature.rows_of(inputs),
        client="inferd itself",
        step=SequenceStep(_SEQUENCE, start=True, end=True) if signature.in_sequences else None,
        shadow=True,
        stages=Stages(received=time.monotonic_ns()),
    )
    dispatcher.submit(request)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await reply.outputs
            return request.stages
    except TimeoutError:
        dispatcher.cancel(request)
        raise Cancelled("") from None
