"""Pieces of PromQL that the dashboards share; every selector takes what the dashboard's variables say."""

INSTANCE = 'job=~"$job", instance=~"$instance"'
"""The instances that are looked at."""
MODELS = f'{INSTANCE}, model=~"$model"'
"""Any number of models."""
MODEL = f'{INSTANCE}, model="$model"'
"""The one model of a dashboard that shows one."""

# Recorded over all instances, so they can't be selected by one.
SLO_OF_MODELS = 'job=~"$job", model=~"$model"'
SLO_OF_MODEL = 'job=~"$job", model="$model"'

# What failed by the server's doing. Work that was turned away in time is shed and shown beside it, but a client
# over its quota says nothing of capacity; what the client got wrong or gave up is neither.
FAILED = 'outcome=~"unavailable|deadline|aborted|internal"'
SHED = 'outcome="overloaded", reason!="quota"'

# Series that any Python process exports are ours where the same scrape says which inferd it is.
OURS = f"and on (job, instance) inferd_build_info{{{INSTANCE}}}"
# A target that is down has no other series at present, but had some not long ago.
EXPECTED = f"and on (job, instance) last_over_time(inferd_build_info{{{INSTANCE}}}[1d])"

# Alerts about one model are of all instances together. All our names begin alike, those of others hardly.
FIRING = 'ALERTS{alertname=~"Inferd.*", alertstate="firing", severity=~"page|ticket", job=~"$job"}'


def rate(series: str, selector: str) -> str:
    """Per second, over a window of a few scrapes."""
    return f"rate({series}{{{selector}}}[$__rate_interval])"


def total(expr: str, by: str = "") -> str:
    """The sum of ``expr``, of all or for each of the labels ``by``."""
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"


def ratio(part: str, whole: str) -> str:
    """``part`` of ``whole``; nothing, and not NaN, where there is no whole."""
    return f"{part} / ({whole} > 0)"


def part_of_requests(which: str, selector: str, by: str = "") -> str:
    """The part of all requests that the matchers ``which`` select: 0 where there are others only."""
    everything = total(rate("inferd_requests_total", selector), by)
    part = total(rate("inferd_requests_total", f"{selector}, {which}"), by)
    return ratio(f"({part} or 0 * {everything})", everything)


def quantile(which: float, histogram: str, selector: str, by: str = "") -> str:
    """A quantile of a histogram, as its buckets tell."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({which:g}, {total(rate(f'{histogram}_bucket', selector), labels)})"
