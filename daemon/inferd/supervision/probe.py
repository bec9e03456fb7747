"""A probe: a synthetic inference through a model's own queue, which shows whether it still answers."""

import asyncio

from inferd.deployment.deployment import Deployment
from inferd.engine.warmup import synthetic_inputs
from inferd.errors import InferdError, InferenceFailed, InternalFault
from inferd.health.probes import ProbeOutcome
from inferd.rollout import synthetic_request


async def send(deployment: Deployment, seconds: float) -> ProbeOutcome:
    """Send ``deployment`` one inference on synthetic input, counted in no metric, and wait at most ``seconds`` for its
    end.

    If the queue has no room for the probe, or no response arrives in time (the probe is then cancelled), the result is
    UNANSWERED.
    """
    reply, signature = synthetic_request.SyntheticReply(keep=False), deployment.signature
    try:
        # Large inputs take a while to generate.
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
