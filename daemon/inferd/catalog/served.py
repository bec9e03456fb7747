"""A model version that is served: its state, what answers for it, and what is tried beside that."""

from dataclasses import dataclass

from inferd.config.model import ModelConfig
from inferd.dispatcher import Dispatcher
from inferd.engine.model import LoadedModel
from inferd.engine.source import ModelSource
from inferd.engine.warmup import max_batch_rows, uses_dynamic_batching
from inferd.lifecycle import ModelState, may_move
from inferd.repository import VersionFile
from inferd.tensors import Signature


@dataclass(frozen=True, slots=True)
class Live:
    """What a version has while it answers."""

    source: ModelSource
    loaded: LoadedModel
    dispatcher: Dispatcher

    @property
    def config(self) -> ModelConfig:
        return self.source.config

    @property
    def signature(self) -> Signature:
        return self.loaded.signature

    @property
    def inline(self) -> bool:
        """Whether runs are computed where they start, on one device at least."""
        return any(entry.pool.inline for entry in self.loaded.pools)

    @property
    def dynamic_batching(self) -> bool:
        """Whether requests may run as one batch."""
        return uses_dynamic_batching(self.config, self.loaded.signature)

    @property
    def max_batch_rows(self) -> int:
        """How many rows a batch of requests may have."""
        return max_batch_rows(self.config, self.loaded.signature)


class Served:
    """One model version and its state; ``live`` is there while it is READY or UNLOADING.

    ``beside`` is there while another configuration or a changed version is tried, and it is ``on_trial`` while it is
    tried itself, beside the number before it. ``ailing`` is why it does not answer although it is loaded, "" while it
    does; ``impaired`` is what it answers without, such as a device that it has lost, "" while it has all it was
    loaded on.
    """

    def __init__(self, name: str, version: int) -> None:
        self.name = name
        self.version = version
        self.state = ModelState.LOADING
        self.reason = ""
        self.wanted = True
        # What it was loaded from, but for the settings that only say how it takes over.
        self.origin: tuple[VersionFile, ModelConfig] | None = None
        self.live: Live | None = None
        self.beside: Beside | None = None
        self.on_trial = False
        self.ailing = ""
        self.impaired = ""

    @property
    def shown(self) -> ModelState:
        """The state that others see: whoever does not answer is not ready."""
        return ModelState.UNAVAILABLE if self.ailing and self.state is ModelState.READY else self.state

    @property
    def said(self) -> str:
        """What there is to say of that state, "" for nothing."""
        return self.ailing or "; ".join(filter(None, (self.impaired, self.reason)))

    def move(self, to: ModelState, reason: str = "") -> None:
        """Enter ``to``; a transition outside the table is a bug."""
        if not may_move(self.state, to):
            raise RuntimeError(f"model '{self.name}' can't go from {self.state.value} to {to.value}")
        self.state, self.reason = to, reason


class Beside:
    """What is tried beside a version that is served, and takes what that takes: ``candidate`` beside ``incumbent``.

    :meth:`share` says which part of the requests the candidate gets.
    """

    def __init__(self, incumbent: Live, candidate: Live) -> None:
        self.incumbent = incumbent
        self.candidate = candidate
        self._share = 0.0
        self._owed = 0.0

    def share(self, part: float) -> None:
        """Give the candidate ``part`` of the requests from now on, 0..1, evenly spread."""
        self._share = part

    def pick(self) -> Live:
        """Who answers the next request."""
        self._owed += self._share
        if self._owed < 1:
            return self.incumbent
        self._owed -= 1
        return self.candidate


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the repository index; ``version`` is empty for a model that could not be read at all.
    ``wanted`` unless it was unloaded on purpose."""

    name: str
    version: str
    state: ModelState
    reason: str
    wanted: bool = True


def labels_of(served: Served) -> dict[str, object]:
    """What says in a log line which version it is about."""
    return {"model": served.name, "version": served.version}
