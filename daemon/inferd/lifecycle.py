"""The states of the daemon and of a model version, as tables.

A transition that the table does not name is a bug and raises at once.
"""

from enum import Enum


class Phase(Enum):
    """The phases of the daemon."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class ModelState(Enum):
    """The states of a model version; RepositoryIndex returns these values, which are Triton's."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Retirement(Enum):
    """Why a version is no longer served; RepositoryIndex returns the value as its reason."""

    UNLOADED = "unloaded"
    REPLACED = "replaced"
    UNPICKED = "no longer picked by the version policy"
    ROLLED_BACK = "rolled back"


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.READY, Phase.DRAINING, Phase.FAILED}),
    Phase.READY: frozenset({Phase.DRAINING}),
    Phase.DRAINING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
    Phase.FAILED: frozenset(),
}

MODEL_STATES: dict[ModelState, frozenset[ModelState]] = {
    ModelState.LOADING: frozenset({ModelState.READY, ModelState.UNAVAILABLE}),
    ModelState.READY: frozenset({ModelState.UNLOADING}),
    ModelState.UNLOADING: frozenset({ModelState.UNAVAILABLE}),
    ModelState.UNAVAILABLE: frozenset({ModelState.LOADING}),
}


class Lifecycle:
    """The daemon's phase; moves only along :data:`PHASES`."""

    def __init__(self) -> None:
        self._phase = Phase.STARTING

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def accepts(self) -> bool:
        """Whether new inferences are taken."""
        return self._phase is Phase.READY

    def move(self, to: Phase) -> None:
        """Enter ``to``; raises RuntimeError where the table has no such transition."""
        if to not in PHASES[self._phase]:
            raise RuntimeError(f"the daemon can't go from {self._phase.value} to {to.value}")
        self._phase = to


def may_move(now: ModelState, to: ModelState) -> bool:
    """Whether a model version in ``now`` may enter ``to``."""
    return to in MODEL_STATES[now]
