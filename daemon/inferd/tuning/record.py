"""What the tuner knows of one model version, and the states of its tuning as a table."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from inferd.engine.source import ModelSource
from inferd.tuning.candidates import Candidate
from inferd.tuning.drift import Drift
from inferd.tuning.profile import Profile
from inferd.tuning.session import Progress


class Phase(Enum):
    """What the tuner is doing for a model version. UNTUNABLE: there is nothing to tune, and it says why."""

    UNTUNABLE = "untunable"
    SETTLED = "settled"
    WANTED = "wanted"
    VERIFYING = "verifying"
    SEARCHING = "searching"
    TRYING = "trying"


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.UNTUNABLE: frozenset(),
    Phase.SETTLED: frozenset({Phase.WANTED, Phase.VERIFYING, Phase.TRYING}),
    Phase.WANTED: frozenset({Phase.SEARCHING, Phase.TRYING, Phase.SETTLED}),
    Phase.VERIFYING: frozenset({Phase.WANTED, Phase.SETTLED}),
    # Back to WANTED where the moment was bad.
    Phase.SEARCHING: frozenset({Phase.TRYING, Phase.SETTLED, Phase.WANTED}),
    Phase.TRYING: frozenset({Phase.SETTLED}),
}


class Decision(Enum):
    """How a tuning ended, as metrics count it."""

    PROMOTED = "promoted"
    KEPT = "kept"
    STORED = "stored"
    WRONG_OUTPUT = "wrong_output"
    FAILED = "failed"
    WORSE = "worse"
    STOPPED = "stopped"


class Standing(NamedTuple):
    """A phase and its one reason: ``why``, or what it ``waits_for`` where it is put off. Read as one on any thread."""

    phase: Phase
    why: str = ""
    waits_for: str = ""

    @property
    def said(self) -> str:
        """The reason in words, "" for none."""
        return f"not now: {self.waits_for}" if self.waits_for else self.why

    @property
    def busy(self) -> bool:
        """Whether something goes on; then nothing is put off."""
        return self.phase in (Phase.VERIFYING, Phase.SEARCHING, Phase.TRYING)


@dataclass(slots=True, eq=False)
class Record:
    """``source`` has the settings that ``model.toml`` gives; ``profile`` is in force where there is one,
    ``verified`` once a probe has confirmed it. ``asked`` is its place among those that operators asked for, ascending,
    0 where none did. ``seconds`` were spent on searches; ``gain`` is the winner's over what OpenVINO's THROUGHPUT hint
    gives, 0 where unknown."""

    source: ModelSource
    device: str
    standing: Standing
    profile: Profile | None = None
    key: dict[str, str] = field(default_factory=dict)
    verified: bool = False
    progress: Progress | None = None
    decisions: Counter[Decision] = field(default_factory=Counter)
    seconds: float = 0.0
    gain: float = 0.0
    not_before: float = 0.0
    asked: int = 0
    drift: Drift = field(default_factory=Drift)
    # When its infer requests were last looked at, and the nanoseconds they had been in use by then.
    seen: tuple[float, int] = (0.0, 0)

    @property
    def candidate(self) -> Candidate | None:
        """What the profile says to serve with."""
        return self.profile.winner if self.profile is not None else None

    @property
    def phase(self) -> Phase:
        return self.standing.phase

    @property
    def said(self) -> str:
        """The one thing worth telling now."""
        return self.standing.said

    def move(self, to: Phase, why: str = "") -> None:
        """Enter ``to``, for the reason of before where none is given; a transition outside the table is a bug."""
        phase, before, _ = self.standing
        if to not in PHASES[phase]:
            raise AssertionError(f"tuning can't go from {phase.value} to {to.value}")
        self.standing = Standing(to, why or before)

    def put_off(self, why: str, until: float) -> None:
        """Have it wait for a better moment, and no less than ``until``; what went on for it has ended."""
        if self.standing.busy:
            self.move(Phase.WANTED)
        self.standing, self.not_before = self.standing._replace(waits_for=why), until

    def resume(self) -> None:
        """What it was put off for is over."""
        self.standing = self.standing._replace(waits_for="")

    def ask(self, place: int) -> None:
        """An operator wants it tuned: at once, or once what goes on has ended."""
        self.asked = self.asked or place
        if not self.standing.busy:
            self.standing, self.not_before = Standing(Phase.WANTED, "an operator asked for it"), 0.0

    def tell(self, why: str) -> None:
        """Say something of how it is served; not while something goes on, which has a reason of its own."""
        if not self.standing.busy:
            self.standing = Standing(self.phase, why)

    def drop(self, why: str) -> None:
        """Want nothing for it any more, even if something goes on or was asked for."""
        self.standing, self.asked = Standing(Phase.SETTLED, why), 0
