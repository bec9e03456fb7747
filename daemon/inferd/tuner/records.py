"""The tuner's records of all loaded model versions, and the profiles in force."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from threading import Lock

import structlog

from inferd.deployment.model_version import ModelVersion
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, InvalidRequest, UnknownModel, listed
from inferd.tuner.configure import configured, out_of_reach
from inferd.tuner.plan import key_of, tunable_device
from inferd.tuner.profile import Profile, Profiles
from inferd.tuner.record import COOL_DOWN, TuningDecision, TuningPhase, TuningRecord, TuningStatus
from inferd.tuning.drift import Drift
from inferd.tuning.outcome import THROUGHPUT_HINT

log = structlog.get_logger("inferd.tuning")

_ROLLED_BACK = (TuningDecision.WRONG_OUTPUT, TuningDecision.FAILED, TuningDecision.WORSE)


class TuningRecords:
    """A :class:`TuningRecord` for each loaded model version, and its profile on disk."""

    def __init__(
        self, engine: Engine, profiles: Profiles, *, on_stored: Callable[[str], None] = lambda _: None
    ) -> None:
        """``on_stored`` is called with each model that has a new profile."""
        self.engine = engine
        self._profiles = profiles
        self._on_stored = on_stored
        # Versions are loaded on worker threads, several at a time.
        self._lock = Lock()
        self._records: dict[tuple[str, int], TuningRecord] = {}

    def tuned(self, source: ModelSource) -> ModelSource:
        """``source`` with the settings of its profile, if a valid one exists; runs on the loading thread."""
        try:
            device, why = tunable_device(self.engine, source)
            key = key_of(self.engine, source, device) if device else {}
        except InferdError:
            # Loading will report the error.
            return source
        record = TuningRecord(
            source, device, TuningStatus(TuningPhase.SETTLED if device else TuningPhase.UNTUNABLE, why), key=key
        )
        if device:
            record.profile = self._usable(source, device, self._profiles.find(source.name, source.version, device, key))
        with self._lock:
            old = self._records.get((source.name, source.version))
            if old is not None:
                record.decisions, record.seconds = old.decisions, old.seconds
                record.ticket = old.ticket if device else 0
            self._records[source.name, source.version] = record
        if record.profile is None:
            return source
        record.note(f"from the profile of {record.profile.tuned_at}: {record.profile.reason}")
        record.gain = _gain(record.profile)
        return replace(source, config=configured(source.config, record.profile.winner))

    def _usable(self, source: ModelSource, device: str, profile: Profile | None) -> Profile | None:
        """``profile``, unless someone has edited it to what the device does not have."""
        if profile is None:
            return None
        tunables = self.engine.tunable(device, source.cpu_threads)
        problem = out_of_reach(source.config, tunables, profile.winner)
        if problem:
            log.warning(
                "profile ignored: out of reach",
                model=source.name,
                version=source.version,
                device=device,
                reason=f"winner: {problem}",
            )
        return None if problem else profile

    def all(self) -> list[TuningRecord]:
        """All records, by name and version."""
        with self._lock:
            return [record for _, record in sorted(self._records.items())]

    def of(self, model: str, version: str) -> TuningRecord:
        """The record of ``version``, or of the newest version if empty. Raises UnknownModel or InvalidRequest."""
        found = [r for r in self.all() if r.source.name == model]
        if not found:
            raise UnknownModel(model)
        if not version:
            return found[-1]
        for record in found:
            if str(record.source.version) == version:
                return record
        raise InvalidRequest(
            model, f"version '{version}' was not loaded; loaded: {listed(r.source.version for r in found)}"
        )

    def find(self, model_version: ModelVersion) -> TuningRecord | None:
        """The record of ``model_version``, if it has one."""
        return self._records.get((model_version.name, model_version.version))

    def holds(self, record: TuningRecord) -> bool:
        """Whether ``record`` describes the version as it is loaded now."""
        return self._records.get((record.source.name, record.source.version)) is record

    def store(self, record: TuningRecord, profile: Profile) -> None:
        """Put ``profile`` in force."""
        record.profile = profile
        self._profiles.store(profile)
        self._on_stored(record.source.name)

    def discard_profile(self, record: TuningRecord) -> None:
        """Return to the settings of model.toml."""
        if record.profile is not None:
            record.profile, record.gain = None, 0.0
            self._profiles.remove(record.source.name, record.source.version, record.device)

    def finish(
        self, record: TuningRecord, decision: TuningDecision, reason: str, profile: Profile | None = None
    ) -> None:
        """End a tuning with ``decision``; ``profile`` is put in force, None leaves it unchanged."""
        if profile is not None:
            self.store(record, profile)
        record.move(TuningPhase.SETTLED, reason)
        record.decisions[decision] += 1
        record.not_before = time.monotonic() + COOL_DOWN
        record.verified = True
        record.drift = Drift()
        if record.profile is not None:
            record.gain = _gain(record.profile)
        tell = log.warning if decision in _ROLLED_BACK else log.info
        tell(
            "tuned",
            model=record.source.name,
            version=record.source.version,
            decision=decision.value,
            serving=record.candidate.describe() if record.candidate is not None else "as its settings say",
            why=reason,
        )

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Reset the tuning counts of ``versions``, which are gone."""
        for record in self.all():
            if (record.source.name, str(record.source.version)) in versions:
                record.decisions, record.seconds = Counter(), 0.0


def _gain(profile: Profile) -> float:
    return profile.gains.get(THROUGHPUT_HINT, 0.0)
