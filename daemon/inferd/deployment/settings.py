"""What follows from a model's settings: where it is loaded from, how it is scheduled, its share of the CPU."""

from collections.abc import Iterable

from inferd.config.model import ModelConfig
from inferd.engine.cpu_budget import split
from inferd.engine.device import family
from inferd.engine.source import ModelSource
from inferd.engine.state import most_sequences
from inferd.engine.warmup import max_batch_rows
from inferd.repository.find import ModelEntry, VersionFile
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.hangs import HangRule
from inferd.scheduling.objective import Objective
from inferd.scheduling.rules import QueueLimits, SchedulerRules
from inferd.scheduling.sequences import SequenceLimits
from inferd.tensors import Signature


def source_of(entry: ModelEntry, version: VersionFile, cpu_threads: int = 0) -> ModelSource:
    """What the engine needs to load ``version`` of ``entry``, with its part of the CPU budget, 0 for all of it."""
    return ModelSource(entry.name, version.version, version.file_set, entry.config, cpu_threads)


def cpu_parts(models: Iterable[ModelEntry], threads: int) -> dict[str, int]:
    """``threads`` divided between those ``models`` that may run on the CPU, by their weights."""
    weights = {
        m.name: m.config.share.weight for m in models if any(family(d) not in ("GPU", "NPU") for d in m.config.devices)
    }
    return split(threads, weights) if threads and weights else {}


def rules_of(config: ModelConfig, signature: Signature, defaults: QueueLimits) -> SchedulerRules:
    """How a model of ``signature`` is scheduled under ``config``."""
    queue, batching, objective = config.queue, config.batching, config.objective
    return SchedulerRules(
        QueueLimits(
            queue.max_length or defaults.max_length, queue.max_bytes or defaults.max_bytes, defaults.per_client
        ),
        BatchRule(
            max_batch_rows(config, signature),
            _nanoseconds(batching.max_delay),
            tuple(sorted(batching.preferred_sizes)),
        ),
        Objective(_nanoseconds(objective.latency_slo), objective.percentile) if objective.latency_slo else None,
        SequenceLimits(most_sequences(config, signature), _nanoseconds(config.sequences.idle_timeout))
        if signature.in_sequences
        else None,
        signature.stateful,
        hangs_of(config.execution.hang_timeout),
    )


def hangs_of(timeout: float | None) -> HangRule | None:
    """When runs count as hung under a model's hang_timeout; None for never."""
    if timeout is None:
        return HangRule()
    return HangRule(_nanoseconds(timeout)) if timeout else None


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
