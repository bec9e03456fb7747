"""inferd's own requests to a model version: to compare outputs, to time runs, to probe."""

import asyncio
import time
from collections.abc import Hashable, Sequence

from inferd.dispatcher import Dispatcher
from inferd.errors import Cancelled, InferdError
from inferd.requests import Reply, Request, SequenceStep, Stages
from inferd.tensors import Signature, Tensor

# Seconds to wait for a response to such a request.
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
    """A sequence of one request, None for a model without sequences. Its name is too long for any client to use."""
    return SequenceStep(f"{purpose} " * 100, start=True, end=True) if signature.in_sequences else None


class SyntheticReply:
    """The reply slot of such a request: ``outputs`` are copies, or empty unless ``keep``."""

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
    """The outputs for ``request``, which arrive in ``reply``. Raises its error, and Cancelled without a response within
    ``seconds``; the request is then cancelled."""
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
    """The outputs for ``inputs``, by a request that is counted nowhere. Raises its error, and Cancelled without a
    response within a minute."""
    reply = SyntheticReply()
    request = synthetic_request(signature, inputs, reply, step=own_sequence(signature, "shadow"))
    return await send(dispatcher, request, reply, ANSWER_SECONDS)


async def timed(dispatcher: Dispatcher, signature: Signature, inputs: Sequence[Tensor]) -> Stages:
    """The stages of such a request. Raises as :func:`answer`."""
    reply = SyntheticReply(keep=False)
    request = synthetic_request(signature, inputs, reply, step=own_sequence(signature, "shadow"))
    await send(dispatcher, request, reply, ANSWER_SECONDS)
    return request.stages
