"""All instances and models at a glance: burning budgets, saturation, what runs where."""

from collections.abc import Sequence

from grafana.source.dashboards import annotations as events
from grafana.source.dashboards import links, variables
from grafana.source.dashboards.annotations import Annotations
from grafana.source.dashboards.colours import BURN_RATES, DECISIONS, OUTCOMES, STATES
from grafana.source.dashboards.expressions import (
    EXPECTED,
    FAILED,
    FIRING,
    INSTANCE,
    MODELS,
    SHED,
    SLO_OF_MODELS,
    part_of_requests,
    quantile,
    rate,
    ratio,
    total,
)
from grafana.source.dashboards.layout import Board, Panel, arranged
from grafana.source.dashboards.panels import bars, coloured, counts, figure, graph, limit, line, stacked

_DURATION = "inferd_request_duration_seconds"


def board() -> Board:
    return arranged(
        links.FLEET,
        "inferd / fleet",
        "Every instance and model: readiness, traffic, latency against objectives, error budgets, saturation.",
        [variables.job(), variables.instance(), variables.models()],
        [
            ("At a glance", _glance()),
            ("Traffic", _traffic()),
            ("Latency", _latency()),
            ("Objectives", _objectives()),
            ("Saturation", _saturation()),
            ("Models, deployments and tuning", _deployments()),
        ],
    )


def annotations() -> Annotations:
    return [events.builtin(), events.alerts('job=~"$job"'), events.tuning(MODELS), events.loads(MODELS)]


def _glance() -> Sequence[Panel]:
    return [
        figure("Ready", "Instances that take requests.", "none", f"sum(inferd_ready{{{INSTANCE}}})"),
        figure(
            "Down",
            "Targets of these jobs that Prometheus can't scrape.",
            "none",
            f"count((up{{{INSTANCE}}} == 0) {EXPECTED}) or vector(0)",
            steps=[(1, "red")],
        ),
        figure(
            "Not ready",
            "Model versions that should be ready but are not; excludes versions unloaded on purpose.",
            "none",
            f"count(inferd_model_ready{{{MODELS}}} == 0) or vector(0)",
            steps=[(1, "red")],
        ),
        figure(
            "Alerts",
            "Pages and tickets firing now for these jobs.",
            "none",
            f"count({FIRING}) or vector(0)",
            steps=[(1, "red")],
        ),
        figure(
            "Requests",
            "Finished requests a second, with any outcome.",
            "reqps",
            total(rate("inferd_requests_total", MODELS)),
            base="text",
        ),
        figure(
            "Error ratio",
            "Ratio of requests that the server failed: unavailable, deadline, aborted, internal.",
            "percentunit",
            part_of_requests(FAILED, MODELS),
            steps=[(0.001, "yellow"), (0.01, "red")],
        ),
        figure(
            "Shed ratio",
            "Ratio of requests that inferd refused because it could not answer them in time.",
            "percentunit",
            part_of_requests(SHED, MODELS),
            steps=[(0.001, "yellow"), (0.01, "orange")],
        ),
        figure(
            "Budget left",
            "The smallest remaining error budget of all models and objectives; below 0 it is overspent.",
            "percentunit",
            f"min(slo:period_error_budget_remaining:ratio{{{SLO_OF_MODELS}}})",
            steps=[(0.0, "orange"), (0.25, "green")],
            base="red",
        ),
    ]


def _traffic() -> Sequence[Panel]:
    by_outcome = graph(
        "Requests by outcome",
        "Requests a second by outcome; counts every request that reached a server once.",
        "reqps",
        line(total(rate("inferd_requests_total", MODELS), "outcome"), "{{outcome}}"),
        width=6,
    )
    return [
        coloured(stacked(by_outcome), OUTCOMES),
        graph(
            "Errors",
            "Ratio of each model's requests that the server failed: unavailable, deadline, aborted, internal. _OTHER "
            "counts requests to models that don't exist.",
            "percentunit",
            line(part_of_requests(FAILED, MODELS, "model"), "{{model}}"),
            width=6,
            reach=0.01,
            link=links.to_model(),
        ),
        graph(
            "Shed",
            "Ratio of each model's requests that inferd refused because it could not answer them in time.",
            "percentunit",
            line(part_of_requests(SHED, MODELS, "model"), "{{model}}"),
            width=6,
            reach=0.01,
            link=links.to_model(),
        ),
        graph(
            "Inferences",
            "Rows of successful requests a second.",
            "ops",
            line(total(rate("inferd_inferences_total", MODELS), "model"), "{{model}}"),
            width=6,
            link=links.to_model(),
        ),
    ]


def _latency() -> Sequence[Panel]:
    p99 = quantile(0.99, _DURATION, MODELS, "model")
    objective = f"max by (model) (inferd_objective_latency_seconds{{{MODELS}}})"
    return [
        graph(
            "p50",
            "Median duration of successful requests, from receiving the request to its response.",
            "s",
            line(quantile(0.5, _DURATION, MODELS, "model"), "{{model}}"),
            link=links.to_model(),
        ),
        graph(
            "p99",
            "99th percentile of the duration of successful requests, from receiving the request to its response.",
            "s",
            line(p99, "{{model}}"),
            link=links.to_model(),
        ),
        graph(
            "p99 against the objective",
            "p99 relative to the model's latency objective, for models with one; the objective is met up to 100 %.",
            "percentunit",
            line(f"{p99} / {objective}", "{{model}}"),
            steps=[(1.0, "red")],
            link=links.to_model(),
        ),
    ]


def _objectives() -> Sequence[Panel]:
    met = total(rate("inferd_objective_met_total", MODELS), "model")
    missed = total(rate("inferd_objective_missed_total", MODELS), "model")
    return [
        graph(
            "Error budget left",
            "Remaining budget of the period; below 0 the objective is missed.",
            "percentunit",
            line(f"slo:period_error_budget_remaining:ratio{{{SLO_OF_MODELS}}}", "{{model}} {{slo}}"),
            link=links.to_model(),
            signed=True,
        ),
        graph(
            "Burn rate",
            "Current rate of spending the error budget: at 1 it lasts exactly the period, 6 and 14.4 page.",
            "none",
            line(f"slo:current_burn_rate:ratio{{{SLO_OF_MODELS}}}", "{{model}} {{slo}}"),
            steps=BURN_RATES,
            link=links.to_model(),
        ),
        graph(
            "Answered in time",
            "Ratio of responses within the model's latency objective, for models with one.",
            "percentunit",
            line(ratio(met, f"({met} + {missed})"), "{{model}}"),
            link=links.to_model(),
        ).max(1),
    ]


def _saturation() -> Sequence[Panel]:
    return [
        graph(
            "Utilisation",
            "Busy fraction of each model's infer requests; at 100 % requests wait.",
            "percentunit",
            line(
                f"{total(rate('inferd_busy_seconds_total', MODELS), 'model')}"
                f" / {total(f'inferd_infer_requests{{{MODELS}}}', 'model')}",
                "{{model}}",
            ),
            steps=[(1.0, "red")],
            link=links.to_model(),
        ),
        counts(
            "Queue",
            "Requests waiting to start.",
            line(total(f"inferd_queue_length{{{MODELS}}}", "model"), "{{model}}"),
            link=links.to_model(),
        ),
        graph(
            "In flight against the limit",
            "Requests waiting or running, relative to the limit; at 100 % inferd sheds further ones.",
            "percentunit",
            line(
                f"{total(f'inferd_in_flight_requests{{{MODELS}}}', 'model')}"
                f" / {total(f'inferd_in_flight_limit{{{MODELS}}}', 'model')}",
                "{{model}}",
            ),
            steps=[(1.0, "red")],
            link=links.to_model(),
        ),
    ]


def _deployments() -> Sequence[Panel]:
    states = counts(
        "Model versions by state",
        "Over all instances.",
        line(total(f"inferd_model_state{{{MODELS}}}", "state"), "{{state}}"),
    )
    # OpenVINO's version ends with a build number and the name of a branch.
    builds = f'label_replace(inferd_build_info{{{INSTANCE}}}, "openvino", "$1", "openvino", "([^-]*).*")'
    versions = counts(
        "Instances by version",
        "Instances by versions of inferd and OpenVINO: the progress of a roll-out.",
        line(f"count by (version, openvino) ({builds})", "{{version}} on OpenVINO {{openvino}}"),
    )
    decisions = f"increase(inferd_tuning_decisions_total{{{MODELS}}}[$__rate_interval])"
    tuner = graph(
        "Tuner",
        "Finished tunings by result, and model versions being tuned.",
        "none",
        line(total(decisions, "decision"), "{{decision}}"),
        line(total(f"inferd_tuning_active{{{MODELS}}}"), "being tuned"),
    )
    return [
        coloured(stacked(states), STATES),
        stacked(versions),
        limit(coloured(bars(tuner), DECISIONS), "being tuned", "purple"),
    ]
