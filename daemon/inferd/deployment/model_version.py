"""A model version and its state."""

from dataclasses import dataclass

from inferd.config.model import ModelConfig
from inferd.deployment.deployment import Deployment
from inferd.deployment.traffic_split import TrafficSplit
from inferd.lifecycle import ModelState, may_move
from inferd.repository.find import VersionFile


class ModelVersion:
    """One model version and its state; ``deployment`` is there while it is READY or UNLOADING.

    ``split`` is there while another configuration or a changed version is tried, ``canary`` while a newer number is,
    and it ``is_canary`` while it is tried itself, next to the number before it. ``unready_reason`` is why it does not
    answer although it is loaded, "" while it does; ``degraded_reason`` is what it answers without, as a device it lost,
    "" while it has all it was loaded on.
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
        """What there is to say of that state, "" for nothing."""
        return self.unready_reason or "; ".join(filter(None, (self.degraded_reason, self.reason)))

    def move(self, to: ModelState, reason: str = "") -> None:
        """Enter ``to``; a transition outside the table is a bug."""
        if not may_move(self.state, to):
            raise RuntimeError(f"model '{self.name}' can't go from {self.state.value} to {to.value}")
        self.state, self.reason = to, reason


@dataclass(frozen=True, slots=True)
class CanaryShare:
    """``model_version`` is the candidate of ``split``: it gets a part of the requests that name no version."""

    model_version: ModelVersion
    split: TrafficSplit


def labels_of(model_version: ModelVersion) -> dict[str, object]:
    """What says in a log line which version it is about."""
    return {"model": model_version.name, "version": model_version.version}
