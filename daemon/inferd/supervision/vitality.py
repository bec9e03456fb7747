"""Decides whether the daemon is alive: which models to try, and which have been silent for too long.

A model shows that it is alive by runs that end well, real ones or those of a *canary*: an inference of our own
that it is asked for when it had nothing to do for a while. Time is an argument, in seconds of any clock.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# A model may be silent for so many times what a run of it takes: there may be many rows, and others queued.
_RUNS = 20
# Whoever looks so many times later than agreed was held up itself, and has seen nobody's silence.
_HELD_UP = 2.0


class Trust(Enum):
    """What canaries have told of a model so far."""

    PROVING = "proving"
    TRUSTED = "trusted"
    UNTESTABLE = "untestable"


class Ending(Enum):
    """How a canary ended: answered well; answered with the model's error; or neither, as where there was no room
    in the queue, which says nothing of the model."""

    WELL = "well"
    FAILED = "failed"
    UNANSWERED = "unanswered"


# A model that has never been able to run on made-up input is not judged by it.
TRUST: dict[tuple[Trust, Ending], Trust] = {
    (Trust.PROVING, Ending.WELL): Trust.TRUSTED,
    (Trust.PROVING, Ending.FAILED): Trust.UNTESTABLE,
    (Trust.PROVING, Ending.UNANSWERED): Trust.PROVING,
    (Trust.TRUSTED, Ending.WELL): Trust.TRUSTED,
    (Trust.TRUSTED, Ending.FAILED): Trust.TRUSTED,
    (Trust.TRUSTED, Ending.UNANSWERED): Trust.TRUSTED,
}


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of a model: runs that have ended well since it was loaded, whether it has anything to do, and the
    seconds that a run takes."""

    completed: int
    busy: bool
    run: float = 0.0


@dataclass(frozen=True, slots=True)
class Rules:
    """Seconds: ``look`` between two looks, ``quiet`` until a canary is sent, ``limit`` of silence at most."""

    look: float
    quiet: float
    limit: float

    @classmethod
    def within(cls, watchdog: float) -> "Rules":
        """Those for a supervisor that wants to hear from us every ``watchdog`` seconds: four looks in that time, and
        three chances to answer before a model counts as silent."""
        return cls(watchdog / 4, watchdog / 3, watchdog)


@dataclass(frozen=True, slots=True)
class Verdict(Generic[Key]):
    """``ask`` are the models to send a canary now; ``silent`` those that said nothing for too long, and for how many
    seconds. Alive is whoever has none of these."""

    ask: tuple[Key, ...]
    silent: Mapping[Key, float]

    @property
    def alive(self) -> bool:
        return not self.silent


@dataclass(slots=True)
class _Heart:
    """``well`` is when a run ended well last, ``owing`` since when it has owed the next one, None where it has nothing
    to do; ``asked`` is when the last canary was sent."""

    completed: int
    allowed: float
    well: float
    asked: float
    owing: float | None = None
    trust: Trust = Trust.PROVING
    failing: bool = False
    in_flight: bool = False


class Vitality(Generic[Key]):
    """Judges the models by what is seen of them at each :meth:`look`, some :attr:`Rules.look` apart.

    A model that has nothing to do owes nothing, also when there was no room for its canary. One that has, owes
    a run that ends well; and so does one that fails canaries which it used to answer.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._hearts: dict[Key, _Heart] = {}
        self._looked: float | None = None

    def look(self, now: float, seen: Mapping[Key, Sight]) -> Verdict[Key]:
        """Judge the models in ``seen``; those of before that are not in it are gone."""
        rules = self.rules
        late = 0.0 if self._looked is None else now - self._looked - rules.look
        self._looked = now
        self._hearts = {key: self._hearts.get(key) or self._new(now, sight) for key, sight in seen.items()}
        ask, silent = [], {}
        for key, sight in seen.items():
            heart = self._hearts[key]
            if heart.owing is not None and late > rules.look * (_HELD_UP - 1):
                heart.owing += late
            self._follow(heart, now, sight)
            if heart.trust is Trust.UNTESTABLE:
                continue
            if heart.owing is not None and now - heart.owing > heart.allowed:
                silent[key] = now - heart.owing
            if not heart.in_flight and now - max(heart.well, heart.asked) >= rules.quiet:
                heart.in_flight, heart.asked = True, now
                ask.append(key)
        return Verdict(tuple(ask), silent)

    def ended(self, key: Key, ending: Ending) -> None:
        """The canary that ``key`` was asked for has ended. Harmless when the model is gone meanwhile."""
        heart = self._hearts.get(key)
        if heart is None or not heart.in_flight:
            return
        heart.in_flight = False
        heart.trust = TRUST[heart.trust, ending]
        if ending is not Ending.UNANSWERED:
            heart.failing = ending is Ending.FAILED

    def trust(self, key: Key) -> Trust:
        """What is known of ``key``; raises KeyError for one that was not seen at the last look."""
        return self._hearts[key].trust

    def _new(self, now: float, sight: Sight) -> _Heart:
        # Warm-up has just shown that it runs: a canary can wait until it was quiet for a while.
        return _Heart(sight.completed, self._allowed(sight), now, now)

    def _follow(self, heart: _Heart, now: float, sight: Sight) -> None:
        if sight.completed > heart.completed:
            heart.completed, heart.well, heart.owing = sight.completed, now, None
            heart.allowed = self._allowed(sight)
            heart.failing = False
        if not (sight.busy or heart.failing):
            heart.owing = None
        elif heart.owing is None:
            heart.owing = now

    def _allowed(self, sight: Sight) -> float:
        return max(self.rules.limit, _RUNS * sight.run)
