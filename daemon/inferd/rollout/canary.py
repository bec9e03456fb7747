"""A new version that gets a part of the requests, until it is known whether it may have them all."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from inferd.config.model import ModelConfig
from inferd.deployment.deployment import Deployment
from inferd.deployment.traffic_split import TrafficSplit
from inferd.dispatcher import Dispatcher
from inferd.errors import QuotaExceeded
from inferd.requests import Observation
from inferd.rollout.canary_analysis import CanaryAnalysis, CanaryCounts, CanaryRules, CanaryVerdict

# How often the versions are judged while they share the requests, in seconds.
_LOOK = 0.05


def canary_rules_of(config: ModelConfig) -> CanaryRules:
    """How a version with the settings ``config`` is tried."""
    rollout, objective = config.rollout, config.objective
    return CanaryRules(
        rollout.canary_share,
        rollout.canary_duration,
        rollout.canary_requests,
        objective.latency_slo,
        objective.percentile,
    )


class Canary:
    """Shares the requests between the two of ``split``; ``stop`` may be set to have it end soon.

    ``unready_reasons`` says why the candidate or the incumbent does not answer any more, as far as others know, "" for
    well.
    """

    def __init__(
        self,
        rules: CanaryRules,
        split: TrafficSplit,
        stop: asyncio.Event,
        unready_reasons: Callable[[], tuple[str, str]],
    ) -> None:
        self._split = split
        self._stop = stop
        self._unready_reasons = unready_reasons
        self._analysis = CanaryAnalysis(rules)

    async def run(self) -> tuple[CanaryVerdict, str]:
        """How it ended, and in words why."""
        analysis, rules = self._analysis, self._analysis.rules
        incumbent, candidate = self._split.incumbent.dispatcher, self._split.candidate.dispatcher
        incumbent.on_observation = partial(_count, analysis.incumbent, rules.latency)
        candidate.on_observation = partial(_count, analysis.candidate, rules.latency)
        self._split.set_share(rules.share)
        try:
            while (ended := self._look(candidate)) is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._stop.wait()
            return ended
        finally:
            self._split.set_share(0.0)
            incumbent.on_observation = candidate.on_observation = None

    def _look(self, candidate: Dispatcher) -> tuple[CanaryVerdict, str] | None:
        if self._stop.is_set():
            return CanaryVerdict.STOPPED, "another change came before it was decided"
        why, other = self._unready_reasons()
        if why := why or _broken(self._split.candidate):
            return CanaryVerdict.FAILED, why
        analysis, waiting = self._analysis, candidate.scheduler.in_flight
        # Nobody is to wait for a version that may be better while the one before does not answer at all.
        verdict = analysis.conclude(waiting) if other else analysis.step(time.monotonic(), waiting)
        return None if verdict is None else (verdict, analysis.summary())


def _broken(deployment: Deployment) -> str:
    """What nobody needs to count: a device that is lost, a run that hangs."""
    for stats in deployment.dispatcher.device_stats:
        if stats.lost:
            return f"{stats.device}: {stats.lost}"
        if stats.hung:
            return f"a run hangs on {stats.device}"
    return ""


def _count(tally: CanaryCounts, latency: float | None, seen: Observation) -> None:
    """What clients did wrong or gave up says nothing of a version."""
    match seen.outcome:
        case "ok":
            tally.ended += 1
            tally.late += latency is not None and seen.stages.total() > latency * 1e9
        case "internal" | "unavailable":
            tally.ended += 1
            tally.failed += 1
        case "overloaded" | "deadline" if not isinstance(seen.error, QuotaExceeded):
            tally.ended += 1
            tally.late += 1
