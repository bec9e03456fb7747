"""The tuner's record of one model version, and the states of its tuning as a table."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from inferd.engine.source import ModelSource
from inferd.tuner.profile import Profile
from inferd.tuner.session import Progress
from inferd.tuning.candidates import Candidate
from inferd.tuning.drift import Drift

# Why a model whose runs are inline is not tuned.
RUNS_INLINE = "its runs take less time than handing them to another thread would"
# Seconds between one tuning of a model and the next by itself.
COOL_DOWN = 600.0


class TuningPhase(Enum):
    """What the tuner is doing for a model version. UNTUNABLE: there is nothing to tune, and it says why."""

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
    # Back to WANTED where the moment was bad.
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
    """A phase and its one reason: ``why``, or what it ``waits_for`` where it is put off. Read as one on any thread."""

    phase: TuningPhase
    why: str = ""
    waits_for: str = ""

    @property
    def status_text(self) -> str:
        """The reason in words, "" for none."""
        return f"not now: {self.waits_for}" if self.waits_for else self.why

    @property
    def busy(self) -> bool:
        """Whether something goes on; then nothing is put off."""
        return self.phase in (TuningPhase.VERIFYING, TuningPhase.SEARCHING, TuningPhase.TRYING)


@dataclass(slots=True, eq=False)
class TuningRecord:
    """``source`` has the settings that ``model.toml`` gives; ``profile`` is in force where there is one,
    ``verified`` once a probe has confirmed it. ``ticket`` is its place among those that operators asked for, ascending,
    0 where none did. ``seconds`` were spent on searches; ``gain`` is the winner's over what OpenVINO's THROUGHPUT hint
    gives, 0 where unknown."""

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
    # When its infer requests were last looked at, and the nanoseconds they had been in use by then.
    seen: tuple[float, int] = (0.0, 0)

    @property
    def candidate(self) -> Candidate | None:
        """What the profile says to serve with."""
        return self.profile.winner if self.profile is not None else None

    @property
    def phase(self) -> TuningPhase:
        return self.status.phase

    @property
    def status_text(self) -> str:
        """The one thing worth telling now."""
        return self.status.status_text

    def move(self, to: TuningPhase, why: str = "") -> None:
        """Enter ``to``, for the reason of before where none is given; a transition outside the table is a bug."""
        phase, before, _ = self.status
        if to not in TUNING_PHASES[phase]:
            raise AssertionError(f"tuning can't go from {phase.value} to {to.value}")
        self.status = TuningStatus(to, why or before)

    def postpone(self, why: str, until: float) -> None:
        """Have it wait for a better moment, and no less than ``until``; what went on for it has ended."""
        if self.status.busy:
            self.move(TuningPhase.WANTED)
        self.status, self.not_before = self.status._replace(waits_for=why), until

    def resume(self) -> None:
        """What it was put off for is over."""
        self.status = self.status._replace(waits_for="")

    def request(self, ticket: int) -> None:
        """An operator wants it tuned: at once, or once what goes on has ended."""
        self.ticket = self.ticket or ticket
        if not self.status.busy:
            self.status, self.not_before = TuningStatus(TuningPhase.WANTED, "an operator asked for it"), 0.0

    def note(self, why: str) -> None:
        """Say something of how it is served; not while something goes on, which has a reason of its own."""
        if not self.status.busy:
            self.status = TuningStatus(self.phase, why)

    def cancel(self, why: str) -> None:
        """Want nothing for it any more, even if something goes on or was asked for."""
        self.status, self.ticket = TuningStatus(TuningPhase.SETTLED, why), 0
