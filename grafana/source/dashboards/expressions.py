"""PromQL that the dashboards share; every selector uses the dashboard's variables."""

INSTANCE = 'job=~"$job", instance=~"$instance"'
"""The selected instances."""
MODELS = f'{INSTANCE}, model=~"$model"'
"""Any number of models."""
MODEL = f'{INSTANCE}, model="$model"'
"""The model of a dashboard that shows a single one."""

# Recorded over all instances, so they can't be selected by instance.
SLO_OF_MODELS = 'job=~"$job", model=~"$model"'
SLO_OF_MODEL = 'job=~"$job", model="$model"'

# Failures of the server. Requests refused in time are shed and shown next to them, but a client over its quota says
# nothing about capacity. Requests that the client got wrong or gave up are neither.
FAILED = 'outcome=~"unavailable|deadline|aborted|internal"'
SHED = 'outcome="overloaded", reason!="quota"'

# Series that any Python process exports are inferd's if the same scrape has inferd_build_info.
OURS = f"and on (job, instance) inferd_build_info{{{INSTANCE}}}"
# A target that is down has no other series now, but had some recently.
EXPECTED = f"and on (job, instance) last_over_time(inferd_build_info{{{INSTANCE}}}[1d])"

# Alerts about one model cover all instances. All of inferd's alert names begin alike.
FIRING = 'ALERTS{alertname=~"Inferd.*", alertstate="firing", severity=~"page|ticket", job=~"$job"}'


def rate(series: str, selector: str) -> str:
    """Per second, over a window of a few scrapes."""
    return f"rate({series}{{{selector}}}[$__rate_interval])"


def total(expr: str, by: str = "") -> str:
    """The sum of ``expr``, in total or by the labels ``by``."""
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"


def ratio(part: str, whole: str) -> str:
    """``part`` / ``whole``; absent, rather than NaN, if ``whole`` is 0."""
    return f"{part} / ({whole} > 0)"


def part_of_requests(which: str, selector: str, by: str = "") -> str:
    """The ratio of requests that the matchers ``which`` select to all requests: 0 if none match."""
    everything = total(rate("inferd_requests_total", selector), by)
    part = total(rate("inferd_requests_total", f"{selector}, {which}"), by)
    return ratio(f"({part} or 0 * {everything})", everything)


def quantile(which: float, histogram: str, selector: str, by: str = "") -> str:
    """A quantile of a histogram, estimated from its buckets."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({which:g}, {total(rate(f'{histogram}_bucket', selector), labels)})"
