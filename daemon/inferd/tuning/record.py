"""What the tuner knows of one model version, and the states of its tuning as a table."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

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


@dataclass(slots=True, eq=False)
class Record:
    """``source`` has the settings that ``model.toml`` gives; ``profile`` is in force where there is one,
    ``verified`` once a probe has confirmed it. ``said`` is the last thing worth telling; ``seconds``
    were spent on searches; ``gain`` is the winner's over what OpenVINO's THROUGHPUT hint gives, 0 where unknown."""

    source: ModelSource
    device: str
    phase: Phase
    profile: Profile | None = None
    key: dict[str, str] = field(default_factory=dict)
    verified: bool = False
    said: str = ""
    progress: Progress | None = None
    decisions: Counter[Decision] = field(default_factory=Counter)
    seconds: float = 0.0
    gain: float = 0.0
    not_before: float = 0.0
    drift: Drift = field(default_factory=Drift)
    # When its infer requests were last looked at, and the nanoseconds they had been in use by then.
    seen: tuple[float, int] = (0.0, 0)

    @property
    def candidate(self) -> Candidate | None:
        """What the profile says to serve with."""
        return self.profile.winner if self.profile is not None else None

    def move(self, to: Phase, said: str = "") -> None:
        """Enter ``to``; a transition outside the table is a bug."""
        if to not in PHASES[self.phase]:
            raise AssertionError(f"tuning can't go from {self.phase.value} to {to.value}")
        self.phase = to
        self.said = said or self.said
