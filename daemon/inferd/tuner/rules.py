"""When to tune, with which settings, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inferd.config.daemon import Settings
from inferd.engine.cpu_budget import cpu_threads
from inferd.engine.source import ModelSource
from inferd.rollout.trial import STAGES, Stage
from inferd.tensors import Tensor
from inferd.tuner.probe_process import WINDOW_SECONDS, ProbeJob


@dataclass(frozen=True, slots=True)
class TunerRules:
    """The settings of the same names, and the stages of a trial. ``budget`` is in seconds per search."""

    mode: Literal["off", "start", "online"]
    budget: float
    cpu_threads: int
    cache: Path
    cache_bytes: int
    stages: tuple[Stage, ...] = STAGES

    @classmethod
    def of(cls, settings: Settings) -> "TunerRules":
        """The rules in ``settings``."""
        return cls(
            settings.tuning,
            settings.tuning_budget,
            cpu_threads(settings),
            settings.cache_dir,
            settings.cache_max_bytes,
        )

    def job(
        self,
        source: ModelSource,
        *,
        nice: int = 0,
        samples: Sequence[Sequence[Tensor]] = (),
        companions: Sequence[ModelSource] = (),
    ) -> ProbeJob:
        """The job for measuring ``source`` in a child process."""
        return ProbeJob(
            source,
            self.cache,
            self.cache_bytes,
            self.cpu_threads,
            WINDOW_SECONDS,
            nice=nice,
            samples=samples,
            companions=companions,
        )
