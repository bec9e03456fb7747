"""Brings a candidate into service without a request that notices: compare, share, promote or roll back."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from inferd.deployment.deployment import Deployment
from inferd.deployment.traffic_split import TrafficSplit
from inferd.engine.warmup import synthetic_inputs
from inferd.errors import InferdError
from inferd.requests import Observation
from inferd.rollout.comparison import difference
from inferd.rollout.synthetic_request import answer
from inferd.rollout.trial import Trial, TrialDecision, TrialSide
from inferd.tensors import Tensor

# How often the sides are judged while they share the traffic, in seconds.
_LOOK = 0.05
# Outcomes that are the server's doing; what a client did or what came too much says nothing of a configuration.
_OURS = "internal"


@dataclass(slots=True)
class RolloutReport:
    """How a roll-out went: the decision, in words why, and what both sides answered in the last stage."""

    decision: TrialDecision = TrialDecision.STOPPED
    why: str = ""
    incumbent: TrialSide | None = None
    candidate: TrialSide | None = None


class CandidateRollout:
    """One candidate's way into service; :meth:`steer` is what ``Catalog.roll_out`` is given.

    ``stop`` may be set to have it rolled back soon.
    """

    def __init__(self, trial: Trial, stop: asyncio.Event) -> None:
        self._trial = trial
        self._stop = stop
        self.report = RolloutReport()

    async def steer(self, split: TrafficSplit) -> bool:
        """True to promote; :attr:`report` says why or why not."""
        if problem := await self._compare(split):
            self.report = RolloutReport(TrialDecision.WRONG_OUTPUT, problem)
            return False
        decision = await self._share(split)
        self.report = RolloutReport(decision, _reason(decision), self._trial.incumbent, self._trial.candidate)
        return decision is TrialDecision.PROMOTED

    async def _compare(self, split: TrafficSplit) -> str:
        """What the candidate answers otherwise than the incumbent; "" where they agree."""
        incumbent, candidate = split.incumbent, split.candidate
        samples = list(incumbent.dispatcher.samples) or [synthetic_inputs(incumbent.source, incumbent.signature)]
        lowered = incumbent.config.execution.mode == "performance" or incumbent.config.execution.precision != "auto"
        for inputs in samples:
            expected = await self._expected(incumbent, inputs)
            if expected is None:
                continue
            try:
                seen = await answer(candidate.dispatcher, candidate.signature, inputs)
            except InferdError as error:
                return f"it fails where the other answers: {error}"
            if problem := difference(expected, seen, lowered=lowered):
                return problem
        return ""

    async def _expected(self, incumbent: Deployment, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """None where the incumbent does not answer either, so that there is nothing to compare."""
        with suppress(InferdError):
            return await answer(incumbent.dispatcher, incumbent.signature, inputs)
        return None

    async def _share(self, split: TrafficSplit) -> TrialDecision:
        trial = self._trial

        def seen(side: str, observation: Observation) -> None:
            if observation.outcome == "ok":
                trial.observe(side, observation.stages.total() / 1e9)  # type: ignore[arg-type]
            elif observation.outcome == _OURS:
                trial.observe(side, None)  # type: ignore[arg-type]

        split.incumbent.dispatcher.on_observation = lambda observation: seen("incumbent", observation)
        split.candidate.dispatcher.on_observation = lambda observation: seen("candidate", observation)
        try:
            while (decision := trial.step(time.monotonic())) is None:
                split.set_share(trial.share)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._stop.wait()
                        return TrialDecision.STOPPED
            return decision
        finally:
            split.incumbent.dispatcher.on_observation = split.candidate.dispatcher.on_observation = None


def _reason(decision: TrialDecision) -> str:
    return {
        TrialDecision.PROMOTED: "it answered as well as the configuration before, and was measured to be better",
        TrialDecision.FAILED: "more of its inferences failed",
        TrialDecision.WORSE: "more of its answers were late",
        TrialDecision.STOPPED: "the trial was stopped",
        TrialDecision.WRONG_OUTPUT: "its answers differ",
    }[decision]
