"""Operators' commands to the tuner: tune, pin, serve with given settings, roll back."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from inferd.axes import DEVICE_CHOICES, QUANTITIES
from inferd.config.model import ExecutionSettings, ModelConfig
from inferd.deployment.model_version import ModelVersion
from inferd.errors import InvalidRequest, ModelUnavailable, RolloutRejected
from inferd.lifecycle import ModelState
from inferd.rollout.exchange import at_once
from inferd.tuner.configure import configured, space_of
from inferd.tuner.profile import Profile
from inferd.tuner.promotion import current_candidate
from inferd.tuner.record import RUNS_INLINE, TuningDecision, TuningPhase, TuningRecord
from inferd.tuner.tuner import Tuner
from inferd.tuning.candidates import Candidate, Space


class OperatorCommands:
    """Each command acts on one record; :class:`TuningRecords` finds it."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self.records = tuner.records
        self._promotion = tuner.promotion

    def request_tuning(self, record: TuningRecord) -> str:
        """Tune it as soon as conditions allow, ahead of searches that no operator requested. Returns when, in words.
        Raises InvalidRequest if it can't be tuned."""
        if not self._tuner.enabled:
            raise InvalidRequest(record.source.name, "tuning is off; start the server with --tuning start")
        if record.phase is TuningPhase.UNTUNABLE:
            raise InvalidRequest(record.source.name, record.status_text)
        model_version = self._promotion.model_version(record)
        if model_version is not None and model_version.deployment is not None and model_version.deployment.inline:
            raise InvalidRequest(
                record.source.name, f"{RUNS_INLINE}; set execution.path in model.toml to have it tuned"
            )
        return self._tuner.request(record)

    def pin(self, record: TuningRecord, pinned: bool) -> None:
        """Pin or unpin the profile: a pinned one is never tuned again. Raises InvalidRequest without a profile."""
        if record.profile is None:
            raise InvalidRequest(record.source.name, "it has no profile yet, so there is nothing to pin")
        self.records.store(record, replace(record.profile, pinned=pinned))
        record.note("pinned" if pinned else "no longer pinned")

    async def serve_with(self, record: TuningRecord, change: Callable[[Candidate], Candidate]) -> str:
        """Apply ``change`` to the settings in service, roll the result out like a tuned candidate, and pin it.

        Returns the settings then in service. Raises InvalidRequest if the change is not possible, RolloutRejected
        if the trial fails, and ModelUnavailable while the model is being tuned.
        """
        model_version = self._idle(record)
        name, source, deployment = record.source.name, record.source, model_version.deployment
        if record.phase is TuningPhase.UNTUNABLE:
            raise InvalidRequest(name, record.status_text)
        if deployment is None or deployment.signature.in_sequences:
            raise InvalidRequest(name, "its sequences would end; set it in model.toml and load the model again")
        tunables = await asyncio.to_thread(self.records.engine.tunable, record.device, source.cpu_threads)
        # An operator may choose anything that the device allows, even against model.toml.
        space = space_of(_without_run_settings(source.config), deployment.signature, tunables)
        before = record.candidate or current_candidate(deployment, next(iter(space.all())))
        target = change(before)
        if problem := _out_of_range(space, target):
            raise InvalidRequest(name, problem)
        record.move(TuningPhase.TRYING, f"trying {target.describe()}")
        decision, why = TuningDecision.FAILED, "an internal error"
        try:
            decision, why = await self._promotion.try_out(model_version, source, target)
        finally:
            self.records.finish(record, decision, f"{target.describe()}: {why}")
        if decision is not TuningDecision.PROMOTED:
            raise RolloutRejected(name, decision.value, why, version=source.version)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        profile = record.profile or Profile(
            name, source.version, record.device, record.key, target, "", None, 99.0, False, 0.0, now, {}, ()
        )
        reason = "set by an operator"
        self.records.store(
            record, replace(profile, winner=target, previous=before, pinned=True, reason=reason, gains={})
        )
        record.note("set by an operator, and pinned")
        return target.describe()

    def _idle(self, record: TuningRecord) -> ModelVersion:
        """The version in service for ``record``. Raises ModelUnavailable if it is being tuned."""
        if record.phase in (TuningPhase.VERIFYING, TuningPhase.SEARCHING, TuningPhase.TRYING):
            raise ModelUnavailable(
                record.source.name, f"being tuned ({record.phase.value})", "try again when it has finished"
            )
        model_version = self._promotion.model_version(record)
        if model_version is None or model_version.state is not ModelState.READY:
            raise ModelUnavailable(record.source.name, "not served")
        return model_version

    async def roll_back(self, record: TuningRecord) -> str:
        """Return to the settings before the last promotion, and pin them. Returns the settings now in service.

        Raises InvalidRequest if there are none, and any error of loading.
        """
        name, profile = record.source.name, record.profile
        if profile is None:
            raise InvalidRequest(name, "it has no profile, so there is nothing to roll back")
        model_version = self._idle(record)
        back = profile.previous
        config = configured(record.source.config, back) if back is not None else record.source.config

        record.move(TuningPhase.TRYING, "rolling back")
        reason = "not rolled back: the previous settings failed to load"
        try:
            if not model_version.deployment or not model_version.deployment.signature.in_sequences:
                await self._promotion.catalog.roll_out(model_version, config, at_once)
            reason = "rolled back by an operator, and pinned"
        finally:
            record.move(TuningPhase.SETTLED, reason)
        deployment = model_version.deployment
        winner = back or (current_candidate(deployment, profile.winner) if deployment is not None else profile.winner)
        self.records.store(
            record,
            replace(profile, winner=winner, previous=profile.winner, pinned=True, reason="rolled back by an operator"),
        )
        return winner.describe()


def _without_run_settings(config: ModelConfig) -> ModelConfig:
    """``config`` without the settings that fix how it runs."""
    own = config.execution
    kept = ExecutionSettings(mode=own.mode, precision=own.precision, hang_timeout=own.hang_timeout)
    return config.model_copy(update={"execution": kept})


def _out_of_range(space: Space, target: Candidate) -> str:
    """Why ``target`` is not allowed; "" if it is. Quantities may lie between those of the search space."""
    for axis in QUANTITIES:
        value, most = getattr(target, axis), space.values(axis)[-1]
        if not 1 <= value <= most:
            return f"{axis} must be 1..{most}, not {value}"
    if target.streams > min(target.threads, target.requests):
        return f"{target.streams} streams need at least as many threads and requests"
    for axis, choice in DEVICE_CHOICES.items():
        value, offered = getattr(target, axis), space.values(axis)
        if value is None or value in offered:
            continue
        if offered == (None,):
            return f"the device has no {axis.replace('_', ' ')}"
        return f"{axis} must be {', '.join(map(choice.word, offered))}, not {choice.word(value)}"
    return ""
