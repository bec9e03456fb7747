"""Reads the daemon's gauges of a model, and waits for values."""

import time

from prometheus_client.parser import text_string_to_metric_families

from tests.system.daemon import Daemon

_PATIENCE = 60.0


def gauge(daemon: Daemon, name: str, model: str) -> int:
    """The gauge ``name`` of version 1 of ``model``, now."""
    return gauge_of(daemon, name, model=model)


def gauge_of(daemon: Daemon, name: str, **labels: str) -> int:
    """The series ``name`` with these labels, and version 1, now."""
    wanted = {"version": "1", **labels}
    _, body = daemon.get("/metrics")
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            if sample.name == name and sample.labels == wanted:
                return int(sample.value)
    raise AssertionError(f"no series {name} with {wanted}")


def wait_until(daemon: Daemon, name: str, model: str, value: int) -> None:
    """Return once the gauge says ``value``: each look is a request of its own to the metrics endpoint."""
    given_up = time.monotonic() + _PATIENCE
    while (seen := gauge(daemon, name, model)) != value:
        assert time.monotonic() < given_up, f"{name} of {model} is {seen}, not {value}\n{daemon.log()}"
