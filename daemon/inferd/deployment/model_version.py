"""A model version and its state."""

from dataclasses import dataclass

from inferd.config.model import ModelConfig
from inferd.deployment.deployment import Deployment
from inferd.deployment.traffic_split import TrafficSplit
from inferd.lifecycle import ModelState, may_move
from inferd.repository.find import VersionFile


class ModelVersion:
    """One model version and its state; ``deployment`` is set while it is READY or UNLOADING.

    ``split`` is set while another configuration or changed content of this version is tried, ``canary`` while a newer
    version is. ``is_canary`` while this version is itself tried next to an older one. ``unready_reason`` says why a
    loaded version does not answer, "" while it does; ``degraded_reason`` says what it lacks, such as a lost device,
    "" while it has everything.
    """

    def __init__(self, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.state = ModelState.LOADING
        self.reason = ""
        self.desired = True
        # What it was loaded from, but for the settings that only say how it takes over.
        self.origin: tuple[VersionFile, ModelConfig] | None = None
        self.deployment: Deployment | None = None
        self.split: TrafficSplit | None = None
        self.canary: CanaryShare | None = None
        self.is_canary = False
        self.unready_reason = ""
        self.degraded_reason = ""

    @property
    def effective_state(self) -> ModelState:
        """The state that others see: a version that does not answer is not ready."""
        return ModelState.UNAVAILABLE if self.unready_reason and self.state is ModelState.READY else self.state

    @property
    def status_text(self) -> str:
        """The reason for that state, "" if there is none."""
        return self.unready_reason or "; ".join(filter(None, (self.degraded_reason, self.reason)))

    def move(self, to: ModelState, reason: str = "") -> None:
        """Enter ``to``; a transition outside the table is a bug."""
        if not may_move(self.state, to):
            raise RuntimeError(f"model '{self.name}' can't go from {self.state.value} to {to.value}")
        self.state, self.reason = to, reason


@dataclass(frozen=True, slots=True)
class CanaryShare:
    """``model_version`` is the candidate of ``split`` and gets a share of the requests that name no version."""

    model_version: ModelVersion
    split: TrafficSplit


def labels_of(model_version: ModelVersion) -> dict[str, object]:
    """The log fields that name a version."""
    return {"model": model_version.name, "version": model_version.version}
