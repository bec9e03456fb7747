"""What serves a model version while it is loaded: its source, its pools and its dispatcher."""

from dataclasses import dataclass

from inferd.config.model import ModelConfig
from inferd.dispatcher import Dispatcher
from inferd.engine.model import LoadedModel
from inferd.engine.source import ModelSource
from inferd.engine.warmup import max_batch_rows, uses_dynamic_batching
from inferd.tensors import Signature


@dataclass(frozen=True, slots=True)
class Deployment:
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
        """Whether runs are inline on at least one device."""
        return any(entry.pool.inline for entry in self.loaded.pools)

    @property
    def dynamic_batching(self) -> bool:
        """Whether requests may run as one batch."""
        return uses_dynamic_batching(self.config, self.loaded.signature)

    @property
    def max_batch_rows(self) -> int:
        """How many rows a batch of requests may have."""
        return max_batch_rows(self.config, self.loaded.signature)
