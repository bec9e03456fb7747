"""Puts a candidate into service: loads it next to the incumbent, compares outputs, and runs the trial."""

import asyncio
from dataclasses import replace

from inferd.catalog.catalog import Catalog
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.engine.source import ModelSource
from inferd.errors import InferdError
from inferd.rollout.output_check import configuration_mismatch
from inferd.rollout.rollout import Rollout
from inferd.rollout.trial import Stage, Trial
from inferd.tuner.configure import configured
from inferd.tuner.probe import effective_of
from inferd.tuner.profile import Profile
from inferd.tuner.record import RUNS_INLINE, TuningDecision, TuningPhase, TuningRecord
from inferd.tuner.records import TuningRecords
from inferd.tuning.candidates import Candidate


class Promotion:
    """Puts candidates on trial in ``catalog``, until ``stopping`` is set."""

    def __init__(
        self, catalog: Catalog, records: TuningRecords, *, stages: tuple[Stage, ...], stopping: asyncio.Event
    ) -> None:
        self.catalog = catalog
        self._records = records
        self._stages = stages
        self._stopping = stopping

    def model_version(self, record: TuningRecord) -> ModelVersion | None:
        """The version in service for ``record``."""
        key = record.source.name, record.source.version
        return next((s for s, _ in self.catalog.serving() if (s.name, s.version) == key), None)

    async def apply(self, record: TuningRecord, found: Profile) -> None:
        """Serve with the settings of ``found``, unless they are in use already or prove worse."""
        if not self._records.holds(record):
            self._records.finish(record, TuningDecision.STOPPED, "the model was reloaded meanwhile")
            return
        model_version = self.model_version(record)
        before = record.candidate
        found = replace(found, previous=before)
        if model_version is None or model_version.deployment is None:
            self._records.finish(record, TuningDecision.STORED, "the model is no longer served", found)
        elif model_version.deployment.inline:
            self._records.finish(record, TuningDecision.STOPPED, RUNS_INLINE)
        elif found.winner == (kept := before or current_candidate(model_version.deployment, found.winner)):
            self._records.finish(record, TuningDecision.KEPT, found.reason, found)
        elif model_version.deployment.signature.in_sequences:
            # The states live in the incumbent's infer requests: replacing it would end every live sequence.
            self._records.finish(record, TuningDecision.STORED, f"from the next load: {found.reason}", found)
        else:
            target = found.winner.describe()
            record.move(TuningPhase.TRYING, f"trying {target}")
            decision, why = await self.try_out(model_version, record.source, found.winner)
            profile: Profile | None = None
            if decision is TuningDecision.PROMOTED:
                profile = found
            elif decision is not TuningDecision.STOPPED:
                profile = replace(found, winner=kept, reason=f"{target} was rolled back: {why}", gains={})
            self._records.finish(record, decision, f"{target}: {why}", profile)

    async def try_out(
        self, model_version: ModelVersion, source: ModelSource, candidate: Candidate
    ) -> tuple[TuningDecision, str]:
        """Promote ``candidate`` if it passes its trial. Returns the decision and the reason."""
        objective = source.config.objective
        rollout = Rollout(
            Trial(objective.latency_slo, objective.percentile, self._stages),
            self._stopping,
            check=configuration_mismatch,
            unready_reasons=lambda: ("", model_version.unready_reason),
        )
        try:
            await self.catalog.roll_out(model_version, configured(source.config, candidate), rollout.steer)
        except InferdError as error:
            return TuningDecision.FAILED, str(error)
        # Rollout and tuning decisions share their names.
        return TuningDecision(rollout.result.decision.value), rollout.result.why


def current_candidate(deployment: Deployment, like: Candidate) -> Candidate:
    """The settings of ``deployment``, spelt out like those of ``like``."""
    entry = deployment.loaded.pools[0]
    return replace(
        effective_of(like, entry.effective, entry.pool.width),
        batch=deployment.max_batch_rows,
        path="sync" if deployment.config.execution.path == "sync" else "async",
    )
