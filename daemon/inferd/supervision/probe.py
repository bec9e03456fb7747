"""A made-up inference through a model's real dispatcher: whether it still answers, and how."""

import asyncio

from inferd.deployment.deployment import Deployment
from inferd.engine.warmup import synthetic_inputs
from inferd.errors import InferdError, InferenceFailed, InternalFault
from inferd.health.probes import ProbeOutcome
from inferd.rollout import synthetic_request


async def send(deployment: Deployment, seconds: float) -> ProbeOutcome:
    """Ask ``deployment`` for one inference on made-up input, counted nowhere, and wait for its end ``seconds`` at most.

    A model that has no room for it is not asked, and one that does not answer in time is told to let it go:
    both are UNANSWERED.
    """
    reply, signature = synthetic_request.SyntheticReply(keep=False), deployment.signature
    try:
        # Large inputs take a while to make up.
        inputs = await asyncio.to_thread(synthetic_inputs, deployment.source, signature)
        step = synthetic_request.own_sequence(signature, "health probe")
        request = synthetic_request.synthetic_request(signature, inputs, reply, step=step)
        if deployment.loaded.shapes is not None:
            deployment.loaded.shapes.check(deployment.source.name, inputs)
    except InferdError:
        return ProbeOutcome.FAILED
    try:
        await synthetic_request.send(deployment.dispatcher, request, reply, seconds)
    except (InferenceFailed, InternalFault):
        return ProbeOutcome.FAILED
    except InferdError:
        return ProbeOutcome.UNANSWERED
    return ProbeOutcome.OK
