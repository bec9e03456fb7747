"""A made-up inference through a model's real dispatcher: whether it still answers, and how."""

import asyncio
import time
from collections.abc import Sequence

from inferd.deployment.deployment import Deployment
from inferd.engine.warmup import synthetic_inputs
from inferd.errors import InferdError, InferenceFailed, InternalFault
from inferd.health.probes import ProbeOutcome
from inferd.requests import Request, SequenceStep, Stages
from inferd.tensors import Tensor

# A sequence of our own: no client can mean it, as the protocol takes no name that long.
_SEQUENCE = "health probe " * 100
_CLIENT = "inferd itself"


class _ProbeReply:
    """The reply slot: only how it ended matters, not what was answered."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[ProbeOutcome] = asyncio.get_running_loop().create_future()

    def answer(self, outputs: Sequence[Tensor]) -> None:  # noqa: ARG002 - the slot's protocol
        self._end(ProbeOutcome.OK)

    def fail(self, error: InferdError) -> None:
        self._end(
            ProbeOutcome.FAILED if isinstance(error, InferenceFailed | InternalFault) else ProbeOutcome.UNANSWERED
        )

    def _end(self, outcome: ProbeOutcome) -> None:
        if not self.ended.done():
            self.ended.set_result(outcome)


async def send(deployment: Deployment, seconds: float) -> ProbeOutcome:
    """Ask ``deployment`` for one inference on made-up input, counted nowhere, and wait for its end ``seconds`` at most.

    A model that has no room for it is not asked, and one that does not answer in time is told to let it go:
    both are UNANSWERED.
    """
    try:
        # Large inputs take a while to make up.
        inputs = await asyncio.to_thread(synthetic_inputs, deployment.source, deployment.signature)
        batch = deployment.signature.rows_of(inputs)
        if deployment.loaded.shapes is not None:
            deployment.loaded.shapes.check(deployment.source.name, inputs)
    except InferdError:
        return ProbeOutcome.FAILED
    reply = _ProbeReply()
    request = Request(
        deployment.source.name,
        deployment.source.version,
        inputs,
        tuple(range(len(deployment.signature.outputs))),
        reply,
        nbytes=sum(len(t.data) for t in inputs),
        rows=batch,
        client=_CLIENT,
        step=SequenceStep(_SEQUENCE, start=True, end=True) if deployment.signature.in_sequences else None,
        shadow=True,
        stages=Stages(received=time.monotonic_ns()),
    )
    try:
        deployment.dispatcher.submit(request)
    except InferdError:
        return ProbeOutcome.UNANSWERED
    try:
        async with asyncio.timeout(seconds):
            return await reply.ended
    except TimeoutError:
        return ProbeOutcome.UNANSWERED
    finally:
        if not reply.ended.done() or reply.ended.cancelled():
            deployment.dispatcher.cancel(request)
