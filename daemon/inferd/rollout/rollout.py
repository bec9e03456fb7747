"""Gives a candidate a share of the traffic next to the incumbent, until a policy decides."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from inferd.deployment.deployment import Deployment
from inferd.deployment.traffic_split import TrafficSplit
from inferd.rollout.policy import RolloutDecision, RolloutPolicy

# How often the sides are judged while they share the traffic, in seconds.
_LOOK = 0.05


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """How a rollout ended, and in words why."""

    decision: RolloutDecision
    why: str


class Rollout:
    """One candidate's rollout under ``policy``; set ``stop`` to end it soon.

    ``check`` returns how the candidate's outputs differ from the incumbent's, "" if they agree; if they differ, the
    candidate never gets a client's request. ``unready_reasons`` returns why the candidate and the incumbent are
    unready, "" while they are ready.
    """

    def __init__(
        self,
        policy: RolloutPolicy,
        stop: asyncio.Event,
        *,
        check: Callable[[TrafficSplit], Awaitable[str]] | None = None,
        unready_reasons: Callable[[], tuple[str, str]] = lambda: ("", ""),
    ) -> None:
        self._policy = policy
        self._stop = stop
        self._check = check
        self._unready_reasons = unready_reasons
        self.result = RolloutResult(RolloutDecision.STOPPED, "")

    async def steer(self, split: TrafficSplit) -> bool:
        """True to promote; :attr:`result` says why or why not."""
        if self._check is not None and (problem := await self._check(split)):
            self.result = RolloutResult(RolloutDecision.WRONG_OUTPUT, problem)
        else:
            self.result = await self._share(split)
        return self.result.decision is RolloutDecision.PROMOTED

    async def _share(self, split: TrafficSplit) -> RolloutResult:
        incumbent, candidate = split.incumbent.dispatcher, split.candidate.dispatcher
        incumbent.on_observation = partial(self._policy.observe, "incumbent")
        candidate.on_observation = partial(self._policy.observe, "candidate")
        try:
            while (ended := self._look(split.candidate)) is None:
                split.set_share(self._policy.share)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._stop.wait()
            return ended
        finally:
            split.set_share(0.0)
            incumbent.on_observation = candidate.on_observation = None

    def _look(self, candidate: Deployment) -> RolloutResult | None:
        policy, waiting = self._policy, candidate.dispatcher.scheduler.in_flight
        if self._stop.is_set():
            return RolloutResult(RolloutDecision.STOPPED, policy.reason(RolloutDecision.STOPPED))
        why, other = self._unready_reasons()
        if why := why or _broken(candidate):
            return RolloutResult(RolloutDecision.FAILED, why)
        # If the incumbent does not answer at all, decide at once.
        decision = policy.conclude(waiting) if other else policy.step(time.monotonic(), waiting)
        return None if decision is None else RolloutResult(decision, policy.reason(decision))


def _broken(deployment: Deployment) -> str:
    """A failure that needs no statistics: a lost device, a hung run."""
    for stats in deployment.dispatcher.device_stats:
        if stats.lost:
            return f"{stats.device}: {stats.lost}"
        if stats.hung:
            return f"a run hung on {stats.device}"
    return ""
