"""One model: its requests, where their time goes, its objectives, load and configuration."""

from collections.abc import Sequence

from grafana.source.dashboards import annotations as events
from grafana.source.dashboards import links, variables
from grafana.source.dashboards.annotations import Annotations
from grafana.source.dashboards.colours import BURN_RATES, DECISIONS, OUTCOMES, STAGES, WINDOWS
from grafana.source.dashboards.expressions import (
    FAILED,
    MODEL,
    SLO_OF_MODEL,
    part_of_requests,
    quantile,
    rate,
    ratio,
    total,
)
from grafana.source.dashboards.layout import Board, Panel, arranged
from grafana.source.dashboards.panels import (
    bars,
    buckets,
    coloured,
    counts,
    figure,
    graph,
    limit,
    line,
    right,
    stacked,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery

_DURATION = "inferd_request_duration_seconds"
_MET = total(rate("inferd_objective_met_total", MODEL))
_ANSWERED = total(rate(f"{_DURATION}_count", MODEL))
_OBJECTIVE = f"max(inferd_objective_latency_seconds{{{MODEL}}})"


def board() -> Board:
    return arranged(
        links.MODEL,
        "inferd / model",
        "One model: requests, errors and duration, stages, objectives and budgets, saturation, tuning.",
        [variables.job(), variables.instance(), variables.model()],
        [
            ("At a glance", _glance()),
            ("Requests", _requests()),
            ("Where the time goes", _time()),
            ("Objectives and error budgets", _objectives()),
            ("Work", _work()),
            ("Saturation", _saturation()),
            ("How it runs", _setup()),
            ("Loading and tuning", _tuning()),
        ],
    )


def annotations() -> Annotations:
    return [
        events.builtin(),
        events.alerts('job=~"$job", model="$model"'),
        events.tuning(MODEL),
        events.loads(MODEL),
    ]


def _glance() -> Sequence[Panel]:
    return [
        figure(
            "Ready",
            "Ready versions of the model, summed over instances.",
            "none",
            total(f"inferd_model_ready{{{MODEL}}}"),
            steps=[(1, "green")],
            base="red",
        ),
        figure(
            "Requests",
            "Finished requests a second, with any outcome.",
            "reqps",
            total(rate("inferd_requests_total", MODEL)),
            base="text",
        ),
        figure(
            "Error ratio",
            "Ratio of requests that the server failed: unavailable, deadline, aborted, internal.",
            "percentunit",
            part_of_requests(FAILED, MODEL),
            steps=[(0.001, "yellow"), (0.01, "red")],
        ),
        figure(
            "p50",
            "Median duration of successful requests.",
            "s",
            quantile(0.5, _DURATION, MODEL),
            base="text",
            nan="No data",
            decimals=1,
        ),
        figure(
            "p99",
            "99th percentile of the duration of successful requests.",
            "s",
            quantile(0.99, _DURATION, MODEL),
            base="text",
            nan="No data",
            decimals=1,
        ),
        figure("Objective", "The latency objective.", "s", _OBJECTIVE, base="text"),
        figure(
            "In time",
            "Ratio of responses within the latency objective.",
            "percentunit",
            ratio(_MET, f"({_MET} + {total(rate('inferd_objective_missed_total', MODEL))})"),
            steps=[(0.95, "yellow"), (0.99, "green")],
            base="red",
        ),
        figure(
            "Budget left",
            "The smallest remaining error budget of the objectives; below 0 it is overspent.",
            "percentunit",
            f"min(slo:period_error_budget_remaining:ratio{{{SLO_OF_MODEL}}})",
            steps=[(0.0, "orange"), (0.25, "green")],
            base="red",
        ),
    ]


def _requests() -> Sequence[Panel]:
    by_outcome = graph(
        "Requests by outcome",
        "Requests a second by outcome; counts every request that reached a server once.",
        "reqps",
        line(total(rate("inferd_requests_total", MODEL), "outcome"), "{{outcome}}"),
    )
    duration = graph(
        "Duration",
        "Time from receiving a request to its response, for successful requests. Points are requests with a trace.",
        "s",
        line(quantile(0.5, _DURATION, MODEL), "p50"),
        line(quantile(0.9, _DURATION, MODEL), "p90"),
        line(quantile(0.99, _DURATION, MODEL), "p99", exemplars=True),
        line(quantile(0.999, _DURATION, MODEL), "p99.9"),
        line(_OBJECTIVE, "objective"),
    )
    return [
        coloured(stacked(by_outcome), OUTCOMES),
        stacked(
            graph(
                "Unsuccessful requests by reason",
                "Unsuccessful requests a second, by outcome and reason.",
                "reqps",
                line(
                    total(rate("inferd_requests_total", f'{MODEL}, outcome!="ok"'), "outcome, reason"),
                    "{{outcome}} {{reason}}",
                ),
            )
        ),
        limit(duration, "objective"),
    ]


def _time() -> Sequence[Panel]:
    stages = [
        line(
            ratio(total(rate("inferd_stage_duration_seconds_sum", f'{MODEL}, stage="{stage}"')), _ANSWERED),
            stage,
        )
        for stage in STAGES
    ]
    split = graph(
        "Stages",
        "Mean duration of a request by stage: parsing, waiting for an infer request, waiting to fill a batch, copying "
        "in, computing in OpenVINO, hand-over to the event loop, copying out, encoding the response.",
        "s",
        *stages,
        width=12,
    )
    return [
        coloured(stacked(split), STAGES),
        buckets(
            "Latency heatmap",
            "Responses a second by duration. The model's objective is one of the boundaries.",
            total(rate(f"{_DURATION}_bucket", MODEL), "le"),
            unit="s",
            width=12,
        ),
    ]


def _objectives() -> Sequence[Panel]:
    return [
        graph(
            "Error budget left",
            "Remaining budget of the period; below 0 the objective is missed.",
            "percentunit",
            line(f"slo:period_error_budget_remaining:ratio{{{SLO_OF_MODEL}}}", "{{slo}}"),
            signed=True,
        ),
        _burn_rates("latency", "late responses"),
        _burn_rates("availability", "unanswered requests"),
    ]


def _burn_rates(slo: str, errors: str) -> Panel:
    selector = f'{SLO_OF_MODEL}, slo="{slo}"'
    budget = f"on (job, model, slo) group_left () slo:error_budget:ratio{{{selector}}}"
    panel = graph(
        f"Burn rate of the {slo} objective",
        f"Rate at which {errors} spend the error budget, over several windows: at 1 it lasts exactly the period. "
        "A page needs two windows above 14.4 or 6.",
        "none",
        *(line(f"slo:sli_error:ratio_rate{window}{{{selector}}} / {budget}", f"over {window}") for window in WINDOWS),
        steps=BURN_RATES,
    )
    return coloured(panel, {f"over {window}": colour for window, colour in WINDOWS.items()})


def _work() -> Sequence[Panel]:
    runs = rate("inferd_batch_rows_count", MODEL)

    def at_most(which: float) -> str:
        # Rows are whole numbers, and a value between two boundaries is only an estimate.
        return f"ceil({quantile(which, 'inferd_batch_rows', MODEL)})"

    rows = graph(
        "Rows in a batch",
        "Mean and quantiles of the rows in one batch, and the limit.",
        "none",
        line(ratio(total(rate("inferd_batch_rows_sum", MODEL)), total(runs)), "mean"),
        line(at_most(0.5), "p50"),
        line(at_most(0.99), "p99"),
        line(f"max(inferd_max_batch_rows{{{MODEL}}})", "limit"),
    )
    return [
        graph(
            "Inferences and runs",
            "Rows of successful requests, and OpenVINO runs for them, a second.",
            "ops",
            line(total(rate("inferd_inferences_total", MODEL)), "inferences"),
            line(total(runs), "runs"),
        ),
        limit(rows, "limit"),
        graph(
            "Bytes",
            "Bytes of requests and responses a second.",
            "binBps",
            line(total(rate("inferd_received_bytes_total", MODEL)), "received"),
            line(total(rate("inferd_sent_bytes_total", MODEL)), "sent"),
        ),
    ]


def _saturation() -> Sequence[Panel]:
    in_flight = counts(
        "In flight",
        "Requests waiting or running, and the limit: learnt from service times if there is an objective.",
        line(total(f"inferd_in_flight_requests{{{MODEL}}}"), "in flight"),
        line(total(f"inferd_in_flight_limit{{{MODEL}}}"), "limit"),
    )
    in_use = graph(
        "Infer requests",
        "Busy infer requests on average, and how many there are.",
        "none",
        line(total(rate("inferd_busy_seconds_total", MODEL)), "busy"),
        line(total(f"inferd_infer_requests{{{MODEL}}}"), "limit"),
    )
    oldest = graph(
        "Oldest in the queue",
        "Age of the oldest request waiting to start, against the latency objective.",
        "s",
        line(f"max by (instance) (inferd_queue_oldest_seconds{{{MODEL}}})", "{{instance}}"),
        line(_OBJECTIVE, "objective"),
        link=links.to_host(),
    )
    sequences = counts(
        "Sequences",
        "Live sequences, and the limit, for models with state.",
        line(total(f"inferd_sequences{{{MODEL}}}"), "sequences"),
        line(total(f"inferd_sequences_limit{{{MODEL}}}"), "limit"),
    )
    return [
        limit(in_flight, "limit"),
        limit(in_use, "limit"),
        counts(
            "Queue",
            "Requests waiting to start.",
            line(total(f"inferd_queue_length{{{MODEL}}}", "instance"), "{{instance}}"),
            link=links.to_host(),
        ),
        limit(oldest, "objective"),
        graph(
            "Bytes in the queue",
            "Bytes of the requests waiting to start.",
            "bytes",
            line(total(f"inferd_queue_bytes{{{MODEL}}}", "instance"), "{{instance}}"),
            link=links.to_host(),
        ),
        limit(sequences, "limit"),
    ]


def _setup() -> Sequence[Panel]:
    def of_device(series: str, legend: str) -> Dataquery:
        return line(f"max by (device) ({series}{{{MODEL}}})", f"{{{{device}}}} {legend}")

    streams = counts(
        "Streams",
        "Streams in force and requested; 0 leaves them to OpenVINO.",
        of_device("inferd_streams", "streams"),
        of_device("inferd_streams_requested", "requested"),
    )
    threads = counts(
        "Threads",
        "CPU threads of all streams, in force and requested; 0 leaves them to OpenVINO.",
        of_device("inferd_threads", "threads"),
        of_device("inferd_threads_requested", "requested"),
    )
    info = f"count by (version, execution_devices, precision, from_cache) (inferd_model_info{{{MODEL}}})"
    instances = counts(
        "Instances by version, device and precision",
        "Devices and precision in force, and whether the model came from the cache of compiled models.",
        line(info, "v{{version}} on {{execution_devices}}, {{precision}}, from cache: {{from_cache}}"),
    )
    return [limit(streams, ".* requested", "yellow"), limit(threads, ".* requested", "yellow"), stacked(instances)]


def _tuning() -> Sequence[Panel]:
    decisions = f"increase(inferd_tuning_decisions_total{{{MODEL}}}[$__rate_interval])"
    tunings = graph(
        "Tunings",
        "Finished tunings by result, and whether one is running.",
        "none",
        line(total(decisions, "decision"), "{{decision}}"),
        line(f"max(inferd_tuning_active{{{MODEL}}})", "being tuned"),
    )
    effect = graph(
        "Gain and cost of tuning",
        "Last measured throughput of the winner relative to OpenVINO's THROUGHPUT hint, 0 if unknown; and the "
        "duration of searches, counted when each ends.",
        "none",
        line(f"max by (version) (inferd_tuning_gain_ratio{{{MODEL}}})", "gain of v{{version}}"),
        line(total(f"increase(inferd_tuning_seconds_total{{{MODEL}}}[$__rate_interval])"), "time searched"),
    )
    return [
        limit(coloured(bars(tunings), DECISIONS), "being tuned", "purple"),
        right(effect, "time searched", "s"),
        graph(
            "Seconds to load",
            "Time from reading the file to ready, and its parts: compiling (or importing from the cache), warm-up and "
            "the first run; for the slowest instance.",
            "s",
            line(f"max(inferd_model_load_seconds{{{MODEL}}})", "load"),
            line(f"max(inferd_model_compile_seconds{{{MODEL}}})", "compile"),
            line(f"max(inferd_model_warm_up_seconds{{{MODEL}}})", "warm-up"),
            line(f"max(inferd_model_first_inference_seconds{{{MODEL}}})", "first run"),
        ),
    ]
