"""Tuning without a daemon: one model at a time, alone or under load from the others."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, listed
from inferd.tuner.configure import configured
from inferd.tuner.plan import key_of, plan, tunable_device
from inferd.tuner.probe_process import ProbeProcess
from inferd.tuner.profile import Profile, Profiles, Sustained, profile_of
from inferd.tuner.rules import TunerRules
from inferd.tuner.session import Progress, tune
from inferd.tuning.outcome import Outcome
from inferd.tuning.search import Search

# Each choice changes the others' share of the machine; a second round lets earlier models adapt.
TURNS = 2


class NoCandidateRan(InferdError):
    """No candidate of a model ran."""

    outcome = "unavailable"

    def __init__(self, model: str, why: str) -> None:
        self.model, self.why = model, why
        super().__init__(f"model '{model}': {why}")


class ProfileNotStored(InferdError):
    """A profile could not be written; the log says why."""

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(f"model '{model}': its profile could not be stored")


class TuningView(Protocol):
    """Receives the progress of searches."""

    def model(self, name: str, version: int, device: str, size: int) -> AbstractContextManager[None]:
        """Entered for the search of one model among ``size`` candidates."""

    def tell(self, progress: Progress) -> None:
        """Report one step of a search."""

    def check(self, probe: ProbeProcess, outcome: Outcome) -> Sustained | None:
        """Test the winner under random arrivals."""

    def result(self, outcome: Outcome, profile: Profile | None) -> None:
        """Report the outcome of a search."""

    def untunable(self, source: ModelSource, why: str) -> None:
        """Report that ``source`` has nothing to tune."""


@dataclass(frozen=True, slots=True)
class OfflineTuner:
    """Tunes with ``engine`` by ``rules``, and stores the results in ``profiles``."""

    engine: Engine
    profiles: Profiles
    rules: TunerRules
    view: TuningView

    def one(self, source: ModelSource, companions: Sequence[ModelSource] = ()) -> Profile | None:
        """The new profile of ``source``, measured while ``companions`` run under full load.

        None if there is nothing to tune. Raises InferdError.
        """
        device, why = tunable_device(self.engine, source)
        if not device:
            self.view.untunable(source, why)
            return None
        source = source.settled()
        key = key_of(self.engine, source, device)
        stored = self.profiles.stored(source.name, source.version, device)
        begun = time.monotonic()
        with ProbeProcess(self.rules.job(source, companions=tuple(companions))) as probe:
            work = plan(self.engine, source, device, key, probe.hints(), stored.winner if stored is not None else None)
            search = Search(work.space, work.goal, work.seeds, budget=self.rules.budget)
            with self.view.model(source.name, source.version, device, work.space.size):
                outcome = tune(search, probe.measure, self.rules.budget, self.view.tell)
                sustained = self.view.check(probe, outcome)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        profile = profile_of(
            source.name, source.version, device, key, outcome, time.monotonic() - begun, now, sustained=sustained
        )
        if profile is not None and companions:
            companion_names = listed(c.name for c in companions)
            profile = replace(profile, reason=f"{profile.reason}; measured under load from {companion_names}")
        self.view.result(outcome, profile)
        if profile is None:
            raise NoCandidateRan(source.name, outcome.reason)
        if not self.profiles.store(profile):
            raise ProfileNotStored(source.name)
        return profile

    def together(self, sources: Sequence[ModelSource], failed: Callable[[InferdError], None]) -> list[Profile]:
        """The profiles of ``sources``, in two rounds: each model is measured under load from the others, with the
        settings chosen for them so far.

        A model that can't be tuned is passed to ``failed`` and stays a companion with its configured settings.
        """
        found: dict[str, Profile] = {}
        for _ in range(TURNS):
            for source in sources:
                others = [_as_chosen(s, found.get(s.name)) for s in sources if s is not source]
                try:
                    profile = self.one(source, others)
                except InferdError as error:
                    failed(error)
                    continue
                if profile is not None:
                    found[source.name] = profile
        return list(found.values())


def _as_chosen(source: ModelSource, profile: Profile | None) -> ModelSource:
    return source if profile is None else replace(source, config=configured(source.config, profile.winner))
