"""Rates, quantiles and ratios for dashboards and operators: grafana/prometheus/recording.rules.yml."""

from grafana.source.rulefile import Group, Record

_QUANTILES = ("0.5", "0.9", "0.99", "0.999")


def groups(interval: float) -> tuple[Group, ...]:
    """The groups of recording.rules.yml, evaluated every ``interval`` seconds."""
    return (Group("inferd-recording", interval, (*_rates(), *_durations(), *_load())),)


def _rates() -> tuple[Record, ...]:
    return (
        Record("inferd:requests:rate5m", "sum by (job, instance, model, outcome) (rate(inferd_requests_total[5m]))"),
        Record("inferd:inferences:rate5m", "sum by (job, instance, model) (rate(inferd_inferences_total[5m]))"),
    )


def _durations() -> tuple[Record, ...]:
    """Over all instances, because the quantiles of single instances can't be combined later.

    Instances with different objectives differ by one bucket boundary. For an instance that lacks it, Prometheus uses
    the count of the boundary before, so the quantile stays between two boundaries that all instances have.
    """
    buckets = "sum by (job, model, le) (rate(inferd_request_duration_seconds_bucket[5m]))"
    by = "sum by (job, model, stage)"
    stages = "inferd_stage_duration_seconds"
    return (
        *(
            Record(
                "inferd:request_duration_seconds:quantile5m",
                f"histogram_quantile({quantile}, {buckets})",
                {"quantile": quantile},
            )
            for quantile in _QUANTILES
        ),
        Record(
            "inferd:stage_duration_seconds:mean5m",
            f"{by} (rate({stages}_sum[5m])) / ({by} (rate({stages}_count[5m])) > 0)",
        ),
    )


def _load() -> tuple[Record, ...]:
    requests = "sum by (job, model) (rate(inferd_requests_total[5m]))"
    # Requests refused by a quota say nothing about capacity.
    shed = 'sum by (job, model) (rate(inferd_requests_total{outcome="overloaded", reason!="quota"}[5m]))'
    by = "sum by (job, instance, model)"
    return (
        Record("inferd:shed:ratio_rate5m", f"({shed} or 0 * {requests}) / ({requests} > 0)"),
        Record(
            "inferd:utilisation:ratio5m",
            f"{by} (rate(inferd_busy_seconds_total[5m])) / ({by} (inferd_infer_requests) > 0)",
        ),
    )
