"""Objectives, error budgets and burn rates: the rules of grafana/prometheus/slo.rules.yml.

Each model has its own objective. inferd exports the values of model.toml as series, and the rules compute everything
from these, for each (job, model) over all instances and versions. docs/alerts.md explains the method to operators.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from grafana.source.rulefile import Alert, Group, Record, Severity, duration, live


@dataclass(frozen=True, slots=True)
class Times:
    """Values that a test shortens: lengths in seconds, and least numbers of events.

    ``windows`` maps a window's name in series to its length; ``period`` is the budget's period; ``evaluation`` and
    ``slow_evaluation`` are the groups' intervals. No alert fires unless the long window has at least ``requests``,
    and at least ``bad_events`` bad ones.
    """

    windows: Mapping[str, float]
    period: float
    evaluation: float
    slow_evaluation: float
    bad_events: int
    requests: int


TIMES = Times(
    windows=MappingProxyType({"5m": 300, "30m": 1800, "1h": 3600, "2h": 7200, "6h": 21600, "1d": 86400, "3d": 259200}),
    period=30 * 86400,
    evaluation=30,
    # Prometheus forgets a sample after 5 minutes; this keeps one available.
    slow_evaluation=120,
    # One bad request at night is the whole night's ratio, and not worth a page. With ten of them, a page at an
    # objective of 99 % means 10 bad of at most 69. The least number of requests prevents a page for a few failures
    # among an idle model's first requests.
    bad_events=10,
    requests=30,
)

# These windows use the daemons' own series. Longer ones use the recorded series of the shortest window, because days of
# samples of every version and outcome are too much for Prometheus to read every other minute.
SHORT = ("5m", "30m", "1h", "2h")
_BASE = SHORT[0]


@dataclass(frozen=True, slots=True)
class Burn:
    """An alert of ``severity`` while the budget burns ``factor`` times as fast as allowed, over both windows.

    The long window shows that the problem matters, the short one that it is still there.
    """

    severity: Severity
    factor: float
    long: str
    short: str


# The SRE workbook's: 2 % of 30 days' budget in an hour, 5 % in six, 10 % in a day, 10 % in three days.
BURNS = (
    Burn("page", 14.4, "1h", "5m"),
    Burn("page", 6, "6h", "30m"),
    Burn("ticket", 3, "1d", "2h"),
    Burn("ticket", 1, "3d", "6h"),
)

_SPEEDS: tuple[tuple[Severity, str, str], ...] = (
    ("page", "Fast", "At this rate a whole budget is gone within five days."),
    ("ticket", "Slowly", "At this rate it will not last for its period."),
)

# An objective outlives a restart, so that an alert does not resolve and fire again.
_REMEMBERED = "10m"


@dataclass(frozen=True, slots=True)
class Slo:
    """One kind of objective.

    ``objective`` is its series. ``total`` and ``error`` return PromQL for the number of events by (job, model) in a
    window such as "5m"; ``error`` also gets the series with the total. ``alert`` begins the alerts' names, ``misses``
    completes their summaries, and ``figures`` their descriptions.
    """

    name: str
    objective: str
    total: Callable[[str], str]
    error: Callable[[str, str], str]
    alert: str
    misses: str
    figures: str


# -- latency: late responses among the successful ones -----------------------------

# Each response is in one of them, by the objective in force when it was sent. Both exist once an objective is set.
_MET, _MISSED = "inferd_objective_met_total", "inferd_objective_missed_total"


def _answered(window: str) -> str:
    return f"sum by (job, model) (increase({_MET}[{window}]) + increase({_MISSED}[{window}]))"


def _late(window: str, _: str) -> str:
    return f"sum by (job, model) (increase({_MISSED}[{window}]))"


# -- availability: unanswered requests among those that should have been answered ---

# "overloaded" is among them: shedding is right, but the client gets no answer.
_FAILED = "internal|unavailable|deadline|aborted|overloaded"
# These say nothing about the server: the client gave up or made a mistake.
_CLIENTS_DOING = "cancelled|aborted_receive|invalid|not_found|unauthenticated|denied|unsupported"
# Neither does a quota: the client has too many requests in flight.
_JUDGED = 'reason!="quota"'


def _requests(outcomes: str, window: str) -> str:
    return f"sum by (job, model) (increase(inferd_requests_total{{{_JUDGED}, {outcomes}}}[{window}]))"


def _to_be_answered(window: str) -> str:
    requests = _requests(f'outcome!~"{_CLIENTS_DOING}"', window)
    return f'{requests} and on (job, model) slo:objective:ratio{{slo="availability"}}'


def _not_answered(window: str, total: str) -> str:
    # A counter appears with its first event. Until then the number of errors is 0, not unknown.
    none = f"0 * sum by (job, model) ({total})"
    failed = _requests(f'outcome=~"{_FAILED}"', window)
    return f"({failed} or {none}) and on (job, model) {total}"


def _now(expr: str, shown: str) -> str:
    return live(expr, "job", "model", shown=shown)


SLOS = (
    Slo(
        "latency",
        objective="inferd_objective_latency_ratio",
        total=_answered,
        error=_late,
        alert="InferdLatencyBudget",
        misses="misses its latency objective too often",
        figures="the last 5 minutes' p99 is "
        + _now('inferd:request_duration_seconds:quantile5m{job=%q, model=%q, quantile="0.99"}', "humanizeDuration")
        + ", the objective "
        + _now("min(inferd_objective_latency_seconds{job=%q, model=%q})", "humanizeDuration"),
    ),
    Slo(
        "availability",
        objective="inferd_objective_availability_ratio",
        total=_to_be_answered,
        error=_not_answered,
        alert="InferdAvailabilityBudget",
        misses="fails or refuses too many requests",
        figures=_now('slo:sli_error:ratio_rate5m{job=%q, model=%q, slo="availability"}', "humanizePercentage")
        + " of the last 5 minutes' requests were not answered",
    ),
)


def groups(times: Times = TIMES) -> tuple[Group, ...]:
    """The groups of slo.rules.yml, in the order in which they build on each other."""
    return (
        Group("inferd-slo", times.evaluation, (*_objectives(), *_short(times), _current())),
        Group("inferd-slo-long", times.slow_evaluation, (*_long(times), _remaining(times))),
        Group("inferd-slo-alerts", times.evaluation, tuple(_alerts(times))),
    )


def _objectives() -> Iterator[Record]:
    for slo in SLOS:
        # If versions or instances have different objectives, the strictest counts.
        expr = f"max by (job, model) (last_over_time({slo.objective}[{_REMEMBERED}]))"
        yield Record("slo:objective:ratio", expr, {"slo": slo.name})
    yield Record("slo:error_budget:ratio", "1 - slo:objective:ratio")


def _short(times: Times) -> Iterator[Record]:
    for name in SHORT:
        window = duration(times.windows[name])
        for slo in SLOS:
            total = f'slo:sli_total:increase{name}{{slo="{slo.name}"}}'
            yield Record(f"slo:sli_total:increase{name}", slo.total(window), {"slo": slo.name})
            yield Record(f"slo:sli_error:increase{name}", slo.error(window, total), {"slo": slo.name})
        yield _ratio(name)


def _long(times: Times) -> Iterator[Record]:
    for name, window in times.windows.items():
        if name not in SHORT:
            for what in ("total", "error"):
                yield Record(f"slo:sli_{what}:increase{name}", _summed(what, window, times))
            yield _ratio(name)


def _ratio(name: str) -> Record:
    """Absent without requests, rather than NaN."""
    expr = f"slo:sli_error:increase{name} / (slo:sli_total:increase{name} > 0)"
    return Record(f"slo:sli_error:ratio_rate{name}", expr)


def _summed(what: str, window: float, times: Times) -> str:
    """Events in a long window: the sum of its base windows."""
    base = f"slo:sli_{what}:increase{_BASE}"
    return f"sum_over_time({base}[{duration(window)}:{duration(times.windows[_BASE])}])"


def _current() -> Record:
    return Record("slo:current_burn_rate:ratio", f"slo:sli_error:ratio_rate{_BASE} / slo:error_budget:ratio")


def _remaining(times: Times) -> Record:
    error, total = (_summed(what, times.period, times) for what in ("error", "total"))
    expr = f"1 - ({error} / ({total} > 0)) / slo:error_budget:ratio"
    return Record("slo:period_error_budget_remaining:ratio", expr)


def _alerts(times: Times) -> Iterator[Alert]:
    for slo in SLOS:
        # After little traffic a bad hour may cost more than the whole budget: show 0, not less.
        series = f'slo:period_error_budget_remaining:ratio{{job=%q, model=%q, slo="{slo.name}"}}'
        remaining = _now(f"clamp_min({series}, 0)", "humanizePercentage")
        left = f"Remaining for the last {duration(times.period)}: {remaining}."
        for severity, speed, urgency in _SPEEDS:
            conditions = [_burns(slo, burn, times) for burn in BURNS if burn.severity == severity]
            yield Alert(
                f"{slo.alert}Burns{speed}",
                severity,
                " or ".join(f"({condition})" for condition in conditions),
                # The windows already delay the alert.
                hold=0,
                summary=f"Model {{{{ $labels.model }}}} {slo.misses}",
                description=f"The {slo.name} budget of model {{{{ $labels.model }}}} (job {{{{ $labels.job }}}}) burns "
                f"{{{{ $value | humanize }}}} times as fast as allowed. {urgency} {left} "
                f"Now: {slo.figures}.",
            )


def _burns(slo: Slo, burn: Burn, times: Times) -> str:
    """Its value is the long window's burn rate."""
    return (
        f'slo:sli_error:ratio_rate{burn.long}{{slo="{slo.name}"}} / slo:error_budget:ratio > {burn.factor:g}'
        f" and slo:sli_error:ratio_rate{burn.short} / slo:error_budget:ratio > {burn.factor:g}"
        f" and slo:sli_error:increase{burn.long} >= {times.bad_events}"
        f" and slo:sli_total:increase{burn.long} >= {times.requests}"
    )
