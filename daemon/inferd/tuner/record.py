"""The tuner's record of one model version, and the tuning phases as a state table."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from inferd.engine.source import ModelSource
from inferd.tuner.profile import Profile
from inferd.tuner.session import Progress
from inferd.tuning.candidates import Candidate
from inferd.tuning.drift import Drift

# Why a model that runs inline is not tuned.
RUNS_INLINE = "its runs are shorter than a hand-over to another thread"
# Seconds between two automatic tunings of a model.
COOL_DOWN = 600.0


class TuningPhase(Enum):
    """What the tuner is doing for a model version. UNTUNABLE: there is nothing to tune; the status says why."""

    UNTUNABLE = "untunable"
    SETTLED = "settled"
    WANTED = "wanted"
    VERIFYING = "verifying"
    SEARCHING = "searching"
    TRYING = "trying"


TUNING_PHASES: dict[TuningPhase, frozenset[TuningPhase]] = {
    TuningPhase.UNTUNABLE: frozenset(),
    TuningPhase.SETTLED: frozenset({TuningPhase.WANTED, TuningPhase.VERIFYING, TuningPhase.TRYING}),
    TuningPhase.WANTED: frozenset({TuningPhase.SEARCHING, TuningPhase.TRYING, TuningPhase.SETTLED}),
    TuningPhase.VERIFYING: frozenset({TuningPhase.WANTED, TuningPhase.SETTLED}),
    # Back to WANTED if conditions did not allow the search.
    TuningPhase.SEARCHING: frozenset({TuningPhase.TRYING, TuningPhase.SETTLED, TuningPhase.WANTED}),
    TuningPhase.TRYING: frozenset({TuningPhase.SETTLED}),
}


class TuningDecision(Enum):
    """How a tuning ended, as metrics count it."""

    PROMOTED = "promoted"
    KEPT = "kept"
    STORED = "stored"
    WRONG_OUTPUT = "wrong_output"
    FAILED = "failed"
    WORSE = "worse"
    STOPPED = "stopped"


class TuningStatus(NamedTuple):
    """A phase with its reason ``why``, or ``waits_for`` if postponed. A tuple, so that any thread reads it whole."""

    phase: TuningPhase
    why: str = ""
    waits_for: str = ""

    @property
    def status_text(self) -> str:
        """The reason in words, "" if there is none."""
        return f"not now: {self.waits_for}" if self.waits_for else self.why

    @property
    def busy(self) -> bool:
        """Whether work is in progress; such a record is never postponed."""
        return self.phase in (TuningPhase.VERIFYING, TuningPhase.SEARCHING, TuningPhase.TRYING)


@dataclass(slots=True, eq=False)
class TuningRecord:
    """``source`` has the settings of ``model.toml``. ``profile`` is in force if there is one, and ``verified`` once a
    probe has confirmed it. ``ticket`` orders the records that operators requested, 0 for others. ``seconds`` is the
    time spent on searches; ``gain`` is the winner's gain over OpenVINO's THROUGHPUT hint, 0 if unknown."""

    source: ModelSource
    device: str
    status: TuningStatus
    profile: Profile | None = None
    key: dict[str, str] = field(default_factory=dict)
    verified: bool = False
    progress: Progress | None = None
    decisions: Counter[TuningDecision] = field(default_factory=Counter)
    seconds: float = 0.0
    gain: float = 0.0
    not_before: float = 0.0
    ticket: int = 0
    drift: Drift = field(default_factory=Drift)
    # When drift was last checked, and the nanoseconds that infer requests had been busy by then.
    seen: tuple[float, int] = (0.0, 0)

    @property
    def candidate(self) -> Candidate | None:
        """The profile's settings."""
        return self.profile.winner if self.profile is not None else None

    @property
    def phase(self) -> TuningPhase:
        return self.status.phase

    @property
    def status_text(self) -> str:
        """The status in words."""
        return self.status.status_text

    def move(self, to: TuningPhase, why: str = "") -> None:
        """Enter ``to`` with reason ``why``, by default the present one; a transition outside the table is a bug."""
        phase, before, _ = self.status
        if to not in TUNING_PHASES[phase]:
            raise AssertionError(f"tuning can't go from {phase.value} to {to.value}")
        self.status = TuningStatus(to, why or before)

    def postpone(self, why: str, until: float) -> None:
        """Wait for better conditions, at least until ``until``; work in progress has been stopped."""
        if self.status.busy:
            self.move(TuningPhase.WANTED)
        self.status, self.not_before = self.status._replace(waits_for=why), until

    def resume(self) -> None:
        """Clear the reason for waiting."""
        self.status = self.status._replace(waits_for="")

    def request(self, ticket: int) -> None:
        """An operator requests tuning: start at once, or after the work in progress."""
        self.ticket = self.ticket or ticket
        if not self.status.busy:
            self.status, self.not_before = TuningStatus(TuningPhase.WANTED, "requested by an operator"), 0.0

    def note(self, why: str) -> None:
        """Set the reason, unless work in progress has one of its own."""
        if not self.status.busy:
            self.status = TuningStatus(self.phase, why)

    def cancel(self, why: str) -> None:
        """Drop all requests and plans for this record, even work in progress."""
        self.status, self.ticket = TuningStatus(TuningPhase.SETTLED, why), 0
