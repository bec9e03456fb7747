"""Decides whether the daemon is alive: which models to try, and which have been silent for too long.

A model shows that it is alive by runs that end well, real ones or those of a *probe*: an inference of our own
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


class ProbeTrust(Enum):
    """What probes have told of a model so far."""

    PROVING = "proving"
    TRUSTED = "trusted"
    UNTESTABLE = "untestable"


class ProbeOutcome(Enum):
    """How a probe ended: answered well; answered with the model's error; or neither, as where there was no room
    in the queue, which says nothing of the model."""

    OK = "ok"
    FAILED = "failed"
    UNANSWERED = "unanswered"


# A model that has never been able to run on made-up input is not judged by it.
PROBE_TRUST: dict[tuple[ProbeTrust, ProbeOutcome], ProbeTrust] = {
    (ProbeTrust.PROVING, ProbeOutcome.OK): ProbeTrust.TRUSTED,
    (ProbeTrust.PROVING, ProbeOutcome.FAILED): ProbeTrust.UNTESTABLE,
    (ProbeTrust.PROVING, ProbeOutcome.UNANSWERED): ProbeTrust.PROVING,
    (ProbeTrust.TRUSTED, ProbeOutcome.OK): ProbeTrust.TRUSTED,
    (ProbeTrust.TRUSTED, ProbeOutcome.FAILED): ProbeTrust.TRUSTED,
    (ProbeTrust.TRUSTED, ProbeOutcome.UNANSWERED): ProbeTrust.TRUSTED,
}


@dataclass(frozen=True, slots=True)
class ModelActivity:
    """What is seen of a model: runs that have ended well since it was loaded, whether it has anything to do, and the
    seconds that a run takes."""

    completed: int
    busy: bool
    run: float = 0.0


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """Seconds: ``look`` between two looks, ``probe_interval`` until a probe is sent, ``limit`` of silence at most."""

    look: float
    probe_interval: float
    limit: float

    @classmethod
    def within(cls, watchdog: float) -> "LivenessRules":
        """Those for a supervisor that wants to hear from us every ``watchdog`` seconds: four looks in that time, and
        three chances to answer before a model counts as silent."""
        return cls(watchdog / 4, watchdog / 3, watchdog)


@dataclass(frozen=True, slots=True)
class LivenessReport(Generic[Key]):
    """``to_probe`` are the models to send a probe now; ``silent`` those that said nothing for too long, and for how
    many seconds. Alive is whoever has none of these."""

    to_probe: tuple[Key, ...]
    silent: Mapping[Key, float]

    @property
    def alive(self) -> bool:
        return not self.silent


@dataclass(slots=True)
class _ModelRecord:
    """``last_ok`` is when a run ended well last, ``owing_since`` since when it has owed the next one, None where it has
    nothing to do; ``probed_at`` is when the last probe was sent."""

    completed: int
    limit: float
    last_ok: float
    probed_at: float
    owing_since: float | None = None
    trust: ProbeTrust = ProbeTrust.PROVING
    failing: bool = False
    probing: bool = False


class Liveness(Generic[Key]):
    """Judges the models by what is seen of them at each :meth:`look`, some :attr:`LivenessRules.look` apart.

    A model that has nothing to do owes nothing, also when there was no room for its probe. One that has, owes
    a run that ends well; and so does one that fails probes which it used to answer.
    """

    def __init__(self, rules: LivenessRules) -> None:
        self.rules = rules
        self._models: dict[Key, _ModelRecord] = {}
        self._looked: float | None = None

    def look(self, now: float, seen: Mapping[Key, ModelActivity]) -> LivenessReport[Key]:
        """Judge the models in ``seen``; those of before that are not in it are gone."""
        rules = self.rules
        late = 0.0 if self._looked is None else now - self._looked - rules.look
        self._looked = now
        self._models = {key: self._models.get(key) or self._new(now, activity) for key, activity in seen.items()}
        to_probe, silent = [], {}
        for key, activity in seen.items():
            model = self._models[key]
            if model.owing_since is not None and late > rules.look * (_HELD_UP - 1):
                model.owing_since += late
            self._follow(model, now, activity)
            if model.trust is ProbeTrust.UNTESTABLE:
                continue
            if model.owing_since is not None and now - model.owing_since > model.limit:
                silent[key] = now - model.owing_since
            if not model.probing and now - max(model.last_ok, model.probed_at) >= rules.probe_interval:
                model.probing, model.probed_at = True, now
                to_probe.append(key)
        return LivenessReport(tuple(to_probe), silent)

    def ended(self, key: Key, outcome: ProbeOutcome) -> None:
        """The probe that ``key`` was asked for has ended. Harmless when the model is gone meanwhile."""
        model = self._models.get(key)
        if model is None or not model.probing:
            return
        model.probing = False
        model.trust = PROBE_TRUST[model.trust, outcome]
        if outcome is not ProbeOutcome.UNANSWERED:
            model.failing = outcome is ProbeOutcome.FAILED

    def trust(self, key: Key) -> ProbeTrust:
        """What is known of ``key``; raises KeyError for one that was not seen at the last look."""
        return self._models[key].trust

    def _new(self, now: float, activity: ModelActivity) -> _ModelRecord:
        # Warm-up has just shown that it runs: a probe can wait until it was quiet for a while.
        return _ModelRecord(activity.completed, self._limit(activity), now, now)

    def _follow(self, model: _ModelRecord, now: float, activity: ModelActivity) -> None:
        if activity.completed > model.completed:
            model.completed, model.last_ok, model.owing_since = activity.completed, now, None
            model.limit = self._limit(activity)
            model.failing = False
        if not (activity.busy or model.failing):
            model.owing_since = None
        elif model.owing_since is None:
            model.owing_since = now

    def _limit(self, activity: ModelActivity) -> float:
        return max(self.rules.limit, _RUNS * activity.run)
