"""From a slow request to the pager and back: the daemon, Prometheus and Alertmanager as they are, in seconds."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
import yaml
from grafana.source import rules, slo

from tests import models
from tests.conftest import ROOT
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.prometheus import Alertmanager, Prometheus, Receiver, needs, until
from tests.system.wire import method, steps

pytestmark = [pytest.mark.system, needs("prometheus", "prometheus-alertmanager")]

OBJECTIVE = 0.3
"""Seconds."""
QUICK = 5
"""Steps of a run that ends well within it, on a busy machine too."""
THINKING = 0.05
"""Seconds between an answer and the client's next request."""

INTERVAL = 0.5
TIMES = slo.Times(
    windows={"5m": 3, "30m": 5, "1h": 10, "2h": 12, "6h": 20, "1d": 30, "3d": 40},
    period=60,
    evaluation=INTERVAL,
    slow_evaluation=INTERVAL,
    bad_events=5,
    requests=10,
)

BURNING = {"alertname": "InferdLatencyBudgetBurnsFast", "severity": "page", "model": "m", "slo": "latency"}
WATCHDOG = "InferdWatchdog"


class Client:
    """Asks model `m`, one request after the other, for ``steps`` steps; from entering the context to leaving it."""

    def __init__(self, target: str) -> None:
        self.steps = QUICK
        self.failed: list[grpc.RpcError] = []
        self._target = target
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="client", daemon=True)

    def _ask(self) -> None:
        with grpc.insecure_channel(self._target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            infer = method(channel, "ModelInfer")
            while not self._left.wait(THINKING):
                try:
                    infer(steps(self.steps, model="m"))
                except grpc.RpcError as error:
                    self.failed.append(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = tmp_path_factory.mktemp("repository")
    objective = f"[objective]\nlatency_slo = {OBJECTIVE}\n"
    models.save(echo_models.steps(), repository, "m", settings=echo_models.serial(16) + objective)
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def steps_beyond_the_objective(daemon: Daemon) -> int:
    """As many as take about twice the objective on this machine."""
    count, spent = 500, 0.0
    with grpc.insecure_channel(daemon.grpc, options=[("grpc.enable_http_proxy", 0)]) as channel:
        infer = method(channel, "ModelInfer")
        while spent < OBJECTIVE:
            count *= 2
            began = time.monotonic()
            infer(steps(count, model="m"))
            spent = time.monotonic() - began
    return round(count * 2 * OBJECTIVE / spent)


def written(folder: Path) -> list[Path]:
    """All rule files, with the budgets' windows shortened."""
    made = {folder / Path(name).name: content for name, content in rules.files(TIMES).items()}
    for path, content in made.items():
        path.write_text(content)
    return list(made)


def last(receiver: Receiver) -> dict[str, Any]:
    """What was said last of the alert that is waited for."""
    return [alert for alert in receiver.alerts if BURNING.items() <= alert["labels"].items()][-1]


def test_a_slowdown_pages_and_its_end_is_told(daemon: Daemon, tmp_path: Path, figure: Callable[[str], None]) -> None:
    slow = steps_beyond_the_objective(daemon)
    with (
        Receiver() as receiver,
        Alertmanager(tmp_path / "alertmanager", receiver.url) as alertmanager,
        Prometheus(
            tmp_path / "prometheus",
            [daemon.metrics],
            interval=f"{INTERVAL * 1000:.0f}ms",
            rules=written(tmp_path),
            alertmanager=alertmanager.address,
        ) as prometheus,
        Client(daemon.grpc) as client,
    ):
        # Healthy: judged for the whole of the long window, and nothing is sent.
        judged = 'count_over_time(slo:sli_error:ratio_rate1h{slo="latency"}[10s])'
        prometheus.wait_for(f"{judged} > 15", bool)
        receiver.wait_for("firing", alertname=WATCHDOG)
        assert prometheus.query(f'ALERTS{{alertstate="firing", alertname!="{WATCHDOG}"}}') == []
        assert {alert["labels"]["alertname"] for alert in receiver.alerts} == {WATCHDOG}

        began = time.monotonic()
        client.steps = slow
        page = receiver.wait_for("firing", **BURNING)
        assert page["annotations"]["summary"] == "Model m misses its latency objective too often"
        assert page["annotations"]["runbook_url"] == "docs/alerts.md#inferdlatencybudgetburnsfast"
        assert "the objective 300ms" in page["annotations"]["description"]
        paged = time.monotonic()
        rate = re.search(r"burns ([\d.]+) times as fast", page["annotations"]["description"])
        assert rate is not None
        assert float(rate[1]) > 6

        client.steps = QUICK
        # Neither of the short windows sees it any more.
        prometheus.wait_for('slo:sli_error:ratio_rate30m{slo="latency"} == 0', bool)
        until(lambda: last(receiver)["status"] == "resolved", 60, lambda: f"the last that was said is {last(receiver)}")
        told = time.monotonic()
        figure(f"alerting: paged {paged - began:.1f} s after a slowdown began, told {told - paged:.1f} s after its end")
        assert last(receiver)["labels"] == page["labels"]

        # Nothing but latency has suffered, and no rule has failed.
        assert client.failed == []
        assert {a["labels"].get("slo") for a in receiver.alerts} == {None, "latency"}
        assert [rule for rule in prometheus.rules() if rule["health"] != "ok"] == []


def labelled(name: str, severity: str, **labels: str) -> dict[str, str]:
    """The labels of an alert."""
    return {"alertname": name, "severity": severity, "job": "inferd", **labels}


def kept_back(alertmanager: Alertmanager) -> list[dict[str, str]]:
    """The alerts that are not sent because others inhibit them."""
    return [alert["labels"] for alert in alertmanager.alerts() if alert["status"]["inhibitedBy"]]


def test_who_is_paged_is_not_told_the_same_by_a_ticket(tmp_path: Path) -> None:
    example: dict[str, Any] = yaml.safe_load((ROOT / "grafana" / "alertmanager" / "alertmanager.yml").read_text())
    pages = [
        labelled("InferdLatencyBudgetBurnsFast", "page", model="m", slo="latency"),
        labelled("InferdModelUnavailable", "page", model="gone"),
    ]
    said_by_those = [
        labelled("InferdLatencyBudgetBurnsSlowly", "ticket", model="m", slo="latency"),
        labelled("InferdModelNotReady", "ticket", model="gone", instance="a"),
    ]
    of_its_own = [
        labelled("InferdLatencyBudgetBurnsSlowly", "ticket", model="other", slo="latency"),
        labelled("InferdAvailabilityBudgetBurnsSlowly", "ticket", model="m", slo="availability"),
        labelled("InferdShedding", "ticket", model="m"),
    ]
    of_instances = [
        labelled("InferdModelNotReady", "ticket", model="m", instance="a"),
        labelled("InferdInstanceDown", "ticket", instance="a"),
    ]

    with Receiver() as receiver, Alertmanager(tmp_path, receiver.url, example["inhibit_rules"]) as alertmanager:

        def keeps_back(*expected: dict[str, str]) -> None:
            """It takes a moment to compare alerts with each other."""
            until(
                lambda: sorted(kept_back(alertmanager), key=str) == sorted(expected, key=str),
                30,
                lambda: f"kept back are {kept_back(alertmanager)}",
            )

        alertmanager.post(*pages, *said_by_those, *of_its_own, *of_instances)
        keeps_back(*said_by_those)
        for labels in (*pages, *of_its_own, *of_instances):
            receiver.wait_for("firing", **labels)

        alertmanager.post(labelled("InferdDown", "page"))
        keeps_back(*said_by_those, *of_instances, pages[1])
        receiver.wait_for("firing", alertname="InferdDown")
        assert not any(alert["labels"] in said_by_those for alert in receiver.alerts)
