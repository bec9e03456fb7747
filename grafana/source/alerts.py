"""Alerts that do not depend on objectives: grafana/prometheus/alerts.rules.yml."""

from grafana.source.rulefile import Alert, Group, live

_MINUTE = 60
_DAY = 86400

# Targets that exported inferd's series within a day, regardless of their job's name and other targets.
_OURS = "up and on (job, instance) last_over_time(inferd_ready[1d])"

# Parts of the templates.
_MODEL, _JOB, _AT = "{{ $labels.model }}", "{{ $labels.job }}", "{{ $labels.instance }}"
_PART, _SECONDS = "{{ $value | humanizePercentage }}", "{{ $value | humanizeDuration }}"
_OF_JOB = "{{ with $labels.job }} of job {{ . }}{{ end }}"


def groups(interval: float) -> tuple[Group, ...]:
    """The groups of alerts.rules.yml, evaluated every ``interval`` seconds."""
    return (Group("inferd-alerts", interval, (*_SERVERS, *_MODELS, *_LOAD, *_SECURITY, *_HOST, _WATCHDOG)),)


def _happened(counter: str, window: str) -> str:
    """How often ``counter`` rose within ``window``; a counter appears with its first event, which is no rise."""
    return f"increase({counter}[{window}]) > 0 or ({counter} unless {counter} offset {window}) > 0"


_RUN_BY = "sum by (job, instance, device, model, version)"
# A completed run shows whether the device works; one that was cut off does not.
_RAN = f'{_RUN_BY} (increase(inferd_requests_total{{device!="", outcome=~"ok|internal", reason=~"|inference"}}[5m]))'
_FAILED = f'{_RUN_BY} (increase(inferd_requests_total{{device!="", outcome="internal", reason="inference"}}[5m]))'
# The failure ratio of the best model on the device: a single broken model does not raise it.
_LEAST_FAILED = f"min by (job, instance, device) (({_FAILED} or 0 * {_RAN}) / ({_RAN} > 0))"


def _now(series: str) -> str:
    """The value of ``series`` at the same instance when the alert is sent."""
    return live(f"{series}{{job=%q, instance=%q}}", "job", "instance")


# Not while the whole daemon starts or drains. A worker that dies repeatedly is back for a moment each time.
_MISSING = "inferd_workers_ready < inferd_workers unless on (job, instance) inferd_ready == 0"
_DYING = "increase(inferd_workers_replaced_total[30m]) >= 3"

_SERVERS = (
    Alert(
        "InferdDown",
        "page",
        # The second part is for a Prometheus that has never seen an inferd, or whose targets are gone.
        f"(group by (job) ({_OURS}) unless on (job) inferd_ready == 1)"
        f" or (absent(inferd_ready) unless on () ({_OURS}))",
        hold=5 * _MINUTE,
        summary=f"No inferd{_OF_JOB} takes requests",
        description=f"No target{_OF_JOB} has been ready for five minutes: each one is unreachable, still starting, "
        "draining or gone.",
    ),
    Alert(
        "InferdInstanceDown",
        "ticket",
        f"({_OURS}) == 0",
        hold=2 * _MINUTE,
        summary=f"inferd at {_AT} can't be scraped",
        description=f"Prometheus has not been able to scrape the metrics port {_AT} (job {_JOB}) for two minutes.",
    ),
    Alert(
        "InferdInstanceNotReady",
        "ticket",
        "inferd_ready == 0",
        hold=10 * _MINUTE,
        summary=f"inferd at {_AT} runs but takes no requests",
        description=f"inferd at {_AT} (job {_JOB}) has been starting or draining for ten minutes.",
    ),
    Alert(
        "InferdWorkersFailing",
        "ticket",
        f"({_MISSING}) or {_DYING}",
        hold=10 * _MINUTE,
        summary=f"Worker processes of inferd at {_AT} are failing",
        description=f"{_now('inferd_workers_ready')} of {_now('inferd_workers')} worker processes of inferd at {_AT} "
        f"(job {_JOB}) serve, and {_now('inferd_workers_replaced_total')} have died and been replaced since it "
        "started: some have been missing for ten minutes, or workers keep dying.",
    ),
    Alert(
        "InferdDeviceLost",
        "page",
        "inferd_device_up == 0",
        hold=1 * _MINUTE,
        summary=f"Device {{{{ $labels.device }}}} of {_AT} is gone",
        description="OpenVINO has not found device {{ $labels.device }}, which models are configured for, "
        f"at {_AT} (job {_JOB}) for a minute.",
    ),
    Alert(
        "InferdDeviceFailing",
        "page",
        # Ten at least, because a few bad requests prove nothing; a lost device has its own alert.
        f"{_LEAST_FAILED} > 0.5 and sum by (job, instance, device) ({_FAILED}) >= 10"
        " unless on (job, instance, device) inferd_device_up == 0",
        hold=2 * _MINUTE,
        summary=f"Runs on device {{{{ $labels.device }}}} of {_AT} are failing",
        description="Every model on device {{ $labels.device }} "
        f"at {_AT} (job {_JOB}) is failing: of the best one, {_PART} of the last 5 minutes' requests failed while "
        "running.",
    ),
)

_MODELS = (
    Alert(
        "InferdModelUnavailable",
        "page",
        "max by (job, model) (inferd_model_ready) == 0",
        hold=5 * _MINUTE,
        summary=f"Model {_MODEL} is not ready at any instance",
        description=f"No version of model {_MODEL} (job {_JOB}) has been ready at any instance for five minutes.",
    ),
    Alert(
        "InferdModelNotReady",
        "ticket",
        "inferd_model_ready == 0",
        hold=10 * _MINUTE,
        summary=f"Model {_MODEL} is not ready at {_AT}",
        description=f"Model {_MODEL}{{{{ with $labels.version }}}}, version {{{{ . }}}},{{{{ end }}}} has not been "
        f"ready at {_AT} (job {_JOB}) for ten minutes.",
    ),
    Alert(
        "InferdModelLoadFailed",
        "ticket",
        _happened('inferd_model_loads_total{result="failed"}', "30m"),
        hold=0,
        summary=f"Model {_MODEL} could not be loaded at {_AT}",
        description=f'{{{{ $value | printf "%.0f" }}}} attempt(s) to load model {_MODEL} failed at {_AT} (job {_JOB}) '
        "within half an hour. The version before still serves.",
    ),
    Alert(
        "InferdModelRolledBack",
        "ticket",
        _happened('inferd_model_rollbacks_total{reason!="stopped"}', "1h"),
        hold=0,
        summary=f"A new version of model {_MODEL} was rolled back at {_AT}",
        description=f"Version {{{{ $labels.version }}}} of model {_MODEL}, the one on disk now, got a share of the "
        f"requests at {_AT} (job {_JOB}) and was rolled back: {{{{ $labels.reason }}}}. The version before still "
        "serves.",
    ),
    Alert(
        "InferdRunsHang",
        "ticket",
        f"sum by (job, instance, model, device) ({_happened('inferd_hung_runs_total', '30m')}) > 0",
        hold=0,
        summary=f"Runs of model {_MODEL} hang at {_AT}",
        description=f'{{{{ $value | printf "%.0f" }}}} run(s) of model {_MODEL} on device {{{{ $labels.device }}}} did '
        f"not end and were given up at {_AT} (job {_JOB}) within half an hour.",
    ),
    Alert(
        "InferdTunerRolledBack",
        "info",
        _happened('inferd_tuning_decisions_total{decision=~"wrong_output|failed|worse"}', "1h"),
        hold=0,
        summary=f"A tuning of model {_MODEL} was rolled back at {_AT}",
        description=f"Other settings for model {_MODEL}, version {{{{ $labels.version }}}}, were tried at {_AT} "
        f"(job {_JOB}) and rolled back: {{{{ $labels.decision }}}}. The model keeps its previous settings.",
    ),
)

_IN_FLIGHT = "sum by (job, instance, model) (avg_over_time(inferd_in_flight_requests[5m]))"
_LIMIT = "sum by (job, instance, model) (avg_over_time(inferd_in_flight_limit[5m]))"
_SHED = 'sum by (job, model) (increase(inferd_requests_total{outcome="overloaded", reason!="quota"}[5m]))'

_LOAD = (
    Alert(
        "InferdSaturated",
        "ticket",
        f"inferd:utilisation:ratio5m > 0.9 and {_IN_FLIGHT} / ({_LIMIT} > 0) > 0.8",
        hold=10 * _MINUTE,
        summary=f"Model {_MODEL} is at its capacity at {_AT}",
        description=f"Infer requests of model {_MODEL} at {_AT} (job {_JOB}) are busy {_PART} of the time, and its "
        "queue is more than four fifths full. inferd will refuse further load.",
    ),
    Alert(
        "InferdShedding",
        "ticket",
        # Ten at least, for models with little traffic.
        f"inferd:shed:ratio_rate5m > 0.05 and {_SHED} >= 10",
        hold=5 * _MINUTE,
        summary=f"Model {_MODEL} is shedding requests",
        description=f"inferd refused {_PART} of the last 5 minutes' requests to model {_MODEL} (job {_JOB}): it could "
        "not have answered them in time, or the queue was full.",
    ),
)

# One call in twenty seconds: more than a passing scanner, and less than one client, or Prometheus, with an old token.
_REFUSED = "sum by (job, instance, endpoint, reason) (rate(inferd_refused_calls_total[10m]))"

_SECURITY = (
    Alert(
        "InferdCertificateExpires",
        "ticket",
        f"inferd_tls_certificate_expiry_timestamp_seconds - time() < {7 * _DAY}",
        hold=10 * _MINUTE,
        summary=f"The certificate of inferd at {_AT} is about to expire",
        description=f"The certificate of inferd at {_AT} (job {_JOB}) expires in {_SECONDS}; a negative time means "
        "that it has expired. Clients then refuse to connect.",
    ),
    Alert(
        "InferdCredentialsStale",
        "ticket",
        "inferd_credentials_current == 0",
        hold=10 * _MINUTE,
        summary=f"Invalid credential files of inferd at {_AT}: {{{{ $labels.kind }}}}",
        description=f"inferd at {_AT} (job {_JOB}) has used its previous {{{{ $labels.kind }}}} for ten minutes, "
        "because the files are invalid now. It would not start again after a restart.",
    ),
    Alert(
        "InferdCallsRefused",
        "ticket",
        f"{_REFUSED} > 0.05",
        hold=10 * _MINUTE,
        summary=f"inferd at {_AT} refuses calls for their credentials",
        description=f'inferd at {_AT} (job {_JOB}) refuses {{{{ $value | printf "%.2f" }}}} calls a second to its '
        "{{ $labels.endpoint }} port for their credentials: {{ $labels.reason }}.",
    ),
)

_THROTTLED = "rate(inferd_cpu_throttled_periods_total[5m]) / (rate(inferd_cpu_quota_periods_total[5m]) > 0)"
_LAG = "histogram_quantile(0.99, sum by (job, instance, le) (rate(inferd_event_loop_lag_seconds_bucket[5m])))"

_HOST = (
    Alert(
        "InferdCpuThrottled",
        "ticket",
        f"{_THROTTLED} > 0.25",
        hold=10 * _MINUTE,
        summary=f"inferd at {_AT} is throttled by its CPU quota",
        description=f"inferd at {_AT} (job {_JOB}) was throttled in {_PART} of the periods of its CPU quota. Each "
        "time, all requests in flight wait, up to a tenth of a second.",
    ),
    Alert(
        "InferdEventLoopLate",
        "ticket",
        f"{_LAG} > 0.05",
        hold=10 * _MINUTE,
        summary=f"The event loop of inferd at {_AT} is late",
        description=f"One timer in a hundred runs {_SECONDS} late at {_AT} (job {_JOB}). Every request waits as long.",
    ),
    Alert(
        "InferdOpenFilesNearLimit",
        "ticket",
        "(process_open_fds / process_max_fds > 0.8 or inferd_connections / inferd_connections_limit > 0.8) "
        "and on (job, instance) inferd_ready",
        hold=5 * _MINUTE,
        summary=f"inferd at {_AT} is running out of open files or connections",
        description=f"inferd at {_AT} (job {_JOB}) has {_PART} of its allowed files or connections open. At the limit "
        "it closes new connections.",
    ),
    Alert(
        "InferdMemoryNearLimit",
        "ticket",
        "process_resident_memory_bytes / inferd_memory_limit_bytes > 0.9",
        hold=5 * _MINUTE,
        summary=f"inferd at {_AT} is running out of memory",
        description=f"inferd at {_AT} (job {_JOB}) uses {_PART} of its control group's memory limit. Beyond the limit "
        "the kernel kills it.",
    ),
)

_WATCHDOG = Alert(
    "InferdWatchdog",
    "none",
    "vector(1)",
    hold=0,
    summary="Alerts are delivered",
    description="Always fires. Send it to a service that calls you when it stops: then Prometheus, Alertmanager or the "
    "connection between them is broken.",
)
