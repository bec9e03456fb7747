"""What the statistics RPC answers, as Triton's clients expect it: counts and nanoseconds of a version.

They are those of its counters in /metrics: a version that is loaded again counts on, see metrics.grace.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often a stage was passed and its nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStatistics:
    """Stages of the executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Statistics:
    """One model version. ``last_inference`` is milliseconds since the epoch, 0 for never.

    ``queue`` has the wait to fill a batch in it, ``compute_output`` hand-over and encoding: Triton knows no such
    stages.
    """

    last_inference: int = 0
    inferences: int = 0
    executions: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
