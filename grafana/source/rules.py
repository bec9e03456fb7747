"""All rule files for Prometheus."""

from grafana.source import alerts, recording, slo
from grafana.source.rulefile import text


def files(times: slo.Times = slo.TIMES) -> dict[str, str]:
    """Path below grafana/ -> content."""
    return {
        "prometheus/recording.rules.yml": text(recording.groups(times.evaluation)),
        "prometheus/slo.rules.yml": text(slo.groups(times)),
        "prometheus/alerts.rules.yml": text(alerts.groups(times.evaluation)),
    }
