"""Events drawn over the graphs: tuning decisions, loaded models, firing alerts."""

from typing import Any

Annotations = list[dict[str, Any]]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def builtin() -> dict[str, Any]:
    """Annotations that users add by hand; Grafana expects the entry."""
    return {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }


def alerts(selector: str) -> dict[str, Any]:
    """Alerts while they fire."""
    expr = f'ALERTS{{alertname=~"Inferd.*", alertstate="firing", {selector}}}'
    return _events("Alerts", expr, "red", "{{alertname}}", "{{severity}} {{model}} {{slo}}")


def tuning(selector: str) -> dict[str, Any]:
    """Finished tunings."""
    counted = f"inferd_tuning_decisions_total{{{selector}}}"
    return _events(
        "Tuning",
        f"sum by (model, version, decision) (increase({counted}[$__rate_interval])) > 0",
        "purple",
        "Tuning of {{model}} {{version}}: {{decision}}",
        "Result of the search, or of its winner's trial.",
    )


def loads(selector: str) -> dict[str, Any]:
    """Versions loaded, or failed to load."""
    counted = f"inferd_model_loads_total{{{selector}}}"
    return _events(
        "Model loads",
        f"sum by (model, result) (increase({counted}[$__rate_interval])) > 0",
        "blue",
        "Load of {{model}}: {{result}}",
        "A version was read, compiled and warmed up, or one of these steps failed.",
    )


def _events(name: str, expr: str, colour: str, title: str, text: str) -> dict[str, Any]:
    return {
        "datasource": _SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "name": name,
        # Older Grafanas read the first two, newer ones the target.
        "expr": expr,
        "step": "15s",
        "target": {"datasource": _SOURCE, "expr": expr, "interval": "15s", "range": True, "refId": "Anno"},
        "titleFormat": title,
        "textFormat": text,
        "tagKeys": "instance",
    }
