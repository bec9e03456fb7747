"""The one place where a candidate is loaded next to the incumbent, and is promoted or rejected; the loser is freed."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from inferd.config.model import ModelConfig
from inferd.deployment.deployment import Deployment
from inferd.deployment.loader import Loader, log_ready
from inferd.deployment.model_version import CanaryShare, ModelVersion, labels_of
from inferd.deployment.traffic_split import TrafficSplit
from inferd.errors import LoadFailed, ModelUnavailable, RolloutRejected
from inferd.lifecycle import ModelState, Retirement
from inferd.repository.find import ModelEntry, VersionFile
from inferd.rollout.canary_analysis import CanaryAnalysis, CanaryRules
from inferd.rollout.output_check import output_mismatch, signature_mismatch
from inferd.rollout.policy import RolloutDecision
from inferd.rollout.rollout import Rollout, RolloutResult

log = structlog.get_logger("inferd.catalog")

# Decides about the two sides of a split: True where the candidate goes on.
Steer = Callable[[TrafficSplit], Awaitable[bool]]


class RouteTable(Protocol):
    """Routes requests to model versions, and publishes their states."""

    def reroute(self) -> None:
        """Route by the states as they are now."""

    async def publish(self) -> None:
        """Let others see a change of state."""


@dataclass(frozen=True, slots=True)
class _CanaryRun:
    """A version of ``entry`` that shares the requests with the one before it, until ``stop`` is set."""

    entry: ModelEntry
    stop: asyncio.Event
    candidate: Deployment


class Exchange:
    """Replaces what ``routes`` leads to by candidates. One change of a model at a time: callers hold the model's lock.
    ``rollbacks`` counts canaries that were rolled back, by model, version and reason."""

    def __init__(self, loader: Loader, routes: RouteTable) -> None:
        self._loader = loader
        self._routes = routes
        self.rollbacks: Counter[tuple[str, str, str]] = Counter()
        self._canaries: dict[str, _CanaryRun] = {}
        # Versions that were rolled back, and why: not tried again until they change or a client requests them.
        self._rejected: dict[tuple[str, int], tuple[tuple[VersionFile, ModelConfig], RolloutRejected]] = {}
        self._ending = False

    # -- another configuration ----------------------------------------------------

    async def exchange(
        self, model: ModelVersion, config: ModelConfig, steer: Steer, *, inline: bool | None = None
    ) -> bool:
        """Load ``model`` with ``config`` next to its current deployment, and let ``steer`` decide which of the two goes
        on; the other is freed."""
        incumbent = model.deployment
        if model.state is not ModelState.READY or incumbent is None:
            raise ModelUnavailable(model.name, model.state.value.lower())
        candidate = await self._loader.load(replace(incumbent.source, config=config, inline=inline))
        model.split = TrafficSplit(incumbent, candidate)
        promoted = False
        try:
            promoted = await steer(model.split)
        finally:
            model.split = None
            if promoted:
                model.deployment, model.unready_reason, model.degraded_reason = candidate, "", ""
                self._routes.reroute()
            # If the caller is cancelled meanwhile, the loser must still be freed.
            await asyncio.shield(self._release(incumbent if promoted else candidate))
        if promoted:
            log_ready(model)
        await self._routes.publish()
        return promoted

    async def _release(self, gone: Deployment) -> None:
        await self._routes.publish()
        await self._loader.finish(gone)

    # -- another version ----------------------------------------------------------

    async def check(self, before: ModelVersion, model: ModelVersion, candidate: Deployment) -> None:
        """Raises LoadFailed if ``candidate`` can't replace ``before``."""
        incumbent, rollout = before.deployment, candidate.config.rollout
        if incumbent is None:
            return
        if rollout.check == "outputs" and (why := await output_mismatch(incumbent, candidate, rollout.tolerance)):
            raise LoadFailed(model.name, model.version, f"it can't take over: {why}")
        if rollout.canary_share and (incumbent.signature.in_sequences or candidate.signature.in_sequences):
            log.warning("canary skipped: live sequences can't be shared", **labels_of(model))
        if needs_canary(before, candidate) and (why := signature_mismatch(incumbent.signature, candidate.signature)):
            raise LoadFailed(
                model.name,
                model.version,
                f"it can't share requests with version {before.version}: {why}; with rollout.canary_share = 0 it takes "
                "over at once",
            )

    async def run_canary(
        self,
        entry: ModelEntry,
        before: ModelVersion,
        model: ModelVersion,
        candidate: Deployment,
        started: asyncio.Event | None,
    ) -> RolloutRejected | None:
        """Share the requests between ``before`` and ``model``. Returns why ``model`` was rolled back, None if it is
        promoted. ``started`` is set once they share."""
        incumbent, rules = before.deployment, CanaryRules.of(candidate.config)
        if incumbent is None:
            return None
        split, stop = TrafficSplit(incumbent, candidate), asyncio.Event()
        self._canaries[model.name] = _CanaryRun(entry, stop, candidate)
        if self._ending:
            stop.set()
        gets = f"gets {rules.share:.3g} of the requests for at least {rules.seconds:g} s, then takes over"
        self._begin_sharing(before, model, split, gets)
        log.info("canary started", **labels_of(model), current=before.version, share=rules.share)
        await self._routes.publish()
        if started is not None:
            started.set()
        rollout = Rollout(
            CanaryAnalysis(rules), stop, unready_reasons=lambda: (model.unready_reason, before.unready_reason)
        )
        result = RolloutResult(RolloutDecision.FAILED, "internal error")
        try:
            await rollout.steer(split)
            result = rollout.result
        except Exception:
            log.exception("canary analysis failed", **labels_of(model))
        finally:
            del self._canaries[model.name]
            before.split, before.canary, model.is_canary = None, None, False
        if result.decision is RolloutDecision.PROMOTED:
            log.info("canary promoted", **labels_of(model), why=result.why)
            return None
        error = RolloutRejected(model.name, result.decision.value, result.why, version=before.version)
        if model.origin is not None and result.decision is not RolloutDecision.STOPPED:
            self._rejected[model.name, model.version] = (model.origin[0], entry.config), error
        await self._roll_back(before, model, candidate, error, stopped=result.decision is RolloutDecision.STOPPED)
        return error

    def _begin_sharing(self, before: ModelVersion, model: ModelVersion, split: TrafficSplit, gets: str) -> None:
        if before.version == model.version:
            before.split = split
            before.reason = f"canary: the version on disk {gets}"
            return
        before.canary = CanaryShare(model, split)
        model.deployment, model.is_canary = split.candidate, True
        model.move(ModelState.READY, f"canary: {gets} from version {before.version}")
        self._routes.reroute()

    async def _roll_back(
        self,
        before: ModelVersion,
        model: ModelVersion,
        candidate: Deployment,
        error: RolloutRejected,
        *,
        stopped: bool,
    ) -> None:
        """Go on with ``before`` alone, and free ``candidate`` once it has answered its accepted requests."""
        self.rollbacks[model.name, str(model.version), error.decision] += 1
        tell = log.info if stopped else log.warning
        tell(
            "canary rolled back",
            **labels_of(model),
            current=before.version,
            reason=error.decision,
            why=error.why,
        )
        if before.version == model.version:
            before.reason = f"version on disk not served: {error}"
            await self._release(candidate)
        else:
            await self.retire([model], Retirement.ROLLED_BACK, error.why)
            # It is still desired, unlike a version that a client unloaded.
            model.desired = not stopped
            await self._routes.publish()

    # -- what is tried, and what was turned away ------------------------------------

    def trying(self, name: str) -> ModelEntry | None:
        """The entry of the canary of ``name``, None if there is none."""
        canary = self._canaries.get(name)
        return canary.entry if canary is not None else None

    def candidates(self) -> list[Deployment]:
        """The deployments of all canaries."""
        return [canary.candidate for canary in self._canaries.values()]

    def stop(self, name: str) -> None:
        """Stop the canary of ``name``, so that another change need not wait for it."""
        if (canary := self._canaries.get(name)) is not None:
            canary.stop.set()

    def end(self) -> None:
        """Stop all canaries, and those that start from now on."""
        self._ending = True
        for name in self._canaries:
            self.stop(name)

    def rejected(self, entry: ModelEntry, version: VersionFile) -> RolloutRejected | None:
        """Why this content of ``version`` of ``entry`` was rolled back; None if it may be tried."""
        what, error = self._rejected.get((entry.name, version.version), (None, None))
        return error if what == (version, entry.config) else None

    def allow(self, name: str, version: int) -> None:
        """Forget that it was rolled back."""
        self._rejected.pop((name, version), None)

    # -- its end ------------------------------------------------------------------

    async def retire(self, gone: Iterable[ModelVersion], retirement: Retirement, why: str = "") -> None:
        """Take versions out of the routes, answer their accepted requests, free their memory."""
        reason = ": ".join(filter(None, (retirement.value, why)))
        for model in gone:
            deployment = model.deployment
            model.move(ModelState.UNLOADING)
            self._routes.reroute()
            await self._routes.publish()
            if deployment is not None:
                await self._loader.finish(deployment)
            model.deployment, model.unready_reason, model.degraded_reason, model.desired = None, "", "", False
            model.move(ModelState.UNAVAILABLE, reason)
            await self._routes.publish()
            log.info("model unloaded", model=model.name, version=model.version, reason=reason)


def needs_canary(before: ModelVersion, candidate: Deployment) -> bool:
    """Whether ``candidate`` must start as a canary."""
    if before.deployment is None or not candidate.config.rollout.canary_share:
        return False
    if before.deployment.signature.in_sequences or candidate.signature.in_sequences:
        return False
    return before.effective_state is ModelState.READY


async def at_once(_: TrafficSplit) -> bool:
    """Steers a rollout that compares nothing: the candidate takes over as soon as it is loaded."""
    return True
