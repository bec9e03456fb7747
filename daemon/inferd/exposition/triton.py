"""Triton's own series, so that dashboards and autoscalers made for it keep working.

Triton counts without ``_total``, and the name is what queries ask for. OpenMetrics, which
Prometheus asks for first, has no counter without it, so they are declared of unknown type:
the only one whose samples are called what the family is and may rise for ever. Queries
don't look at the type.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from inferd.metrics.statistics import Statistics

_LABELS = ("model", "version")


@dataclass(frozen=True, slots=True)
class _Series:
    """A name of Triton's, what it means here, and its value for one model version."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: Callable[[Statistics, int | None], float | None]


# Names and meanings of docs/user_guide/metrics.md of Triton 24.04. Later releases split failures by a label "reason" as
# well, which is not known here; queries by model add these up.
_SERIES = (
    _Series(
        "nv_inference_request_success",
        "counter",
        "Successful requests.",
        lambda seen, _: seen.success.count,
    ),
    _Series(
        "nv_inference_request_failure",
        "counter",
        "Unsuccessful requests.",
        lambda seen, _: seen.fail.count,
    ),
    _Series(
        "nv_inference_count",
        "counter",
        "Inferences of successful requests; a batch of n counts n.",
        lambda seen, _: seen.inferences,
    ),
    _Series(
        "nv_inference_exec_count",
        "counter",
        "Batches executed; a batch may hold several requests.",
        lambda seen, _: seen.executions,
    ),
    _Series(
        "nv_inference_request_duration_us",
        "counter",
        "Microseconds of successful requests, from receipt to response.",
        lambda seen, _: seen.success.ns / 1000,
    ),
    _Series(
        "nv_inference_queue_duration_us",
        "counter",
        "Microseconds that successful requests spent waiting to run.",
        lambda seen, _: seen.queue.ns / 1000,
    ),
    _Series(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Microseconds that successful requests spent on copying inputs.",
        lambda seen, _: seen.compute_input.ns / 1000,
    ),
    _Series(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Microseconds that successful requests spent in OpenVINO.",
        lambda seen, _: seen.compute_infer.ns / 1000,
    ),
    _Series(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Microseconds that successful requests spent on outputs.",
        lambda seen, _: seen.compute_output.ns / 1000,
    ),
    _Series(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests that have not started.",
        lambda _, waiting: waiting,
    ),
)


class TritonCollector(Collector):
    """``read`` gives model, version, its statistics, and how many of its requests have not started, None where it has
    gone."""

    def __init__(self, read: Callable[[], Iterable[tuple[str, str, Statistics, int | None]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        rows = list(self._read())
        for series in _SERIES:
            kind = GaugeMetricFamily if series.kind == "gauge" else UnknownMetricFamily
            family = kind(series.name, series.help, labels=_LABELS)
            for model, version, seen, waiting in rows:
                if (value := series.value(seen, waiting)) is not None:
                    family.add_metric((model, version), float(value))
            yield family


def reference_section() -> str:
    """What docs/metrics.md says of them."""
    rows = (f"| `{s.name}` | {s.kind} | {', '.join(_LABELS)} | {s.help} |\n" for s in _SERIES)
    return (
        "\n## Triton's names\n\nWith `triton_metrics` on, the same under Triton's names, spelt as it spells them.\n\n"
        "| series | type | labels | meaning |\n|---|---|---|---|\n" + "".join(rows)
    )
