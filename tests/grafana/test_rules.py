"""The rules as Prometheus and Alertmanager read them: well formed, about series that exist, and right."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana.source import rules, slo
from grafana.source.rulefile import Alert, Record, duration, text

from inferd import errors
from tests.conftest import ROOT
from tests.grafana.boards import selectors
from tests.grafana.declared import DECLARED
from tests.system.prometheus import needs

pytestmark = needs("promtool", "amtool")

GRAFANA = ROOT / "grafana"
ALERTMANAGER = GRAFANA / "alertmanager" / "alertmanager.yml"
SCENARIOS = sorted((Path(__file__).parent / "rules").glob("*.yml"))

# Labels that rules add to what the series they are computed from have.
ADDED = {"slo", "quantile"}
_ASKED = re.compile(r"printf `([^`]+)`")


def entries(kind: str) -> list[dict[str, Any]]:
    """All rules of the files that are a "record" or an "alert"."""
    groups = [group for content in rules.files().values() for group in yaml.safe_load(content)["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


RECORDS, ALERTS = entries("record"), entries("alert")
EACH_ALERT = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


def run(*command: str | Path) -> str:
    """What the command prints; fails with it when it fails."""
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> Iterator[tuple[str, str]]:
    """Whose it is and the expression: of each rule, and of what an alert's description asks for when it is sent."""
    for rule in (*RECORDS, *ALERTS):
        name = rule.get("record") or rule["alert"]
        yield name, rule["expr"]
        for asked in _ASKED.findall(str(rule.get("annotations", ""))):
            yield name, asked.replace("%q", '"some"')


# -- well formed ------------------------------------------------------------------


def test_promtool_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    for name, content in rules.files().items():
        (tmp_path / Path(name).name).write_text(content)
    assert len(list(tmp_path.iterdir())) == len(rules.files())
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *tmp_path.iterdir())


def test_the_example_configuration_of_prometheus_has_all_rule_files() -> None:
    example = GRAFANA / "prometheus" / "prometheus.yml"
    run("promtool", "check", "config", example)
    listed = yaml.safe_load(example.read_text())["rule_files"]
    assert {f"prometheus/{name}" for name in listed} == rules.files().keys()


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.5, "500ms"), (2, "2s"), (90, "90s"), (300, "5m"), (3600, "1h"), (259200, "3d")]
)
def test_durations_are_written_as_prometheus_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_what_is_no_promql_is_not_written() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        Record("inferd:broken", "sum(rate(up[5m])").entry()


# -- about series that exist ------------------------------------------------------


def test_every_series_is_declared_or_recorded() -> None:
    known = DECLARED.keys() | {rule["record"] for rule in RECORDS}
    assert {(name, s.name) for name, expr in expressions() for s in selectors(expr) if s.name not in known} == set()


def test_every_label_that_is_selected_by_is_declared() -> None:
    wrong = {
        (name, selector.name, matcher.name)
        for name, expr in expressions()
        for selector in selectors(expr)
        for matcher in selector.matchers.matchers
        if matcher.name not in DECLARED.get(selector.name, {"job", "model", *ADDED})
    }
    assert wrong == set()


def test_no_bucket_is_named_by_its_boundary() -> None:
    """A boundary is spelt "1.0" by one format and "1" by another, and each model has one of its own."""
    named = [m.name for _, expr in expressions() for s in selectors(expr) for m in s.matchers.matchers]
    assert "model" in named
    assert "le" not in named


def outcomes(error: type[errors.InferdError] = errors.InferdError) -> set[str]:
    """All that a request can end as but "ok"."""
    return {error.outcome}.union(*(outcomes(one) for one in error.__subclasses__()))


def test_every_outcome_counts_for_or_against_availability_or_is_the_clients_doing() -> None:
    """A new outcome has to be thought of."""
    exprs = [rule["expr"] for rule in RECORDS if rule["record"].endswith("increase1h") and "outcome" in rule["expr"]]
    mentioned = [set(match.split("|")) for match in re.findall(r'outcome[!=]~"([^"]+)"', " ".join(exprs))]
    clients_doing, failed = mentioned
    assert clients_doing & failed == set()
    assert clients_doing | failed == outcomes()


# -- what people are told ---------------------------------------------------------


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@EACH_ALERT
def test_every_alert_says_how_bad_it_is_what_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"page", "ticket", "info", "none"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert len(alert["annotations"]["summary"]) < len(alert["annotations"]["description"])
    page, anchor = alert["annotations"]["runbook_url"].split("#")
    assert anchor in headings(ROOT / page)


def test_alerts_have_names_of_their_own_and_the_runbook_knows_no_others() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)
    known = {heading for heading in headings(ROOT / "docs" / "alerts.md") if heading.startswith("inferd")}
    assert known == {name.lower() for name in names}


def test_the_page_about_alerts_names_every_recorded_series() -> None:
    """It shows only the shortest window of series that differ by their window alone."""
    page, longer = (ROOT / "docs" / "alerts.md").read_text(), tuple(set(slo.TIMES.windows) - {"5m"})
    shown = {rule["record"] for rule in RECORDS if not rule["record"].endswith(longer)}
    assert {name for name in shown if f"`{name}`" not in page} == set()
    assert len(shown) < len({rule["record"] for rule in RECORDS})


def test_what_pages_or_makes_a_ticket_has_held_for_a_while() -> None:
    """Budgets have windows; the others wait, or are about an event that nothing takes back."""
    at_once = {a["alert"] for a in ALERTS if "for" not in a and "Budget" not in a["alert"]}
    events = {"InferdModelLoadFailed", "InferdRunsHang", "InferdModelRolledBack", "InferdTunerRolledBack"}
    assert at_once == events | {"InferdWatchdog"}


# -- right ------------------------------------------------------------------------


@pytest.mark.parametrize("scenarios", SCENARIOS, ids=lambda path: path.stem)
def test_rules_do_what_the_scenarios_say(scenarios: Path) -> None:
    run("promtool", "test", "rules", scenarios)


@EACH_ALERT
def test_every_alert_is_shown_firing_with_its_words_and_not_firing(alert: dict[str, Any]) -> None:
    shown = [
        (bool(case["exp_alerts"]), case["alertname"])
        for path in SCENARIOS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    assert (True, alert["alert"]) in shown
    # What a healthy server is told of is in the first test of alerts.yml, and the budgets' have files of their own.
    assert (False, alert["alert"]) in shown or alert["alert"] in {
        "InferdWatchdog",
        "InferdModelLoadFailed",
        *(one["alert"] for one in ALERTS if "Budget" in one["alert"]),
    }


def test_the_windows_can_be_shortened(tmp_path: Path) -> None:
    seconds = {name: number / 150 for name, number in slo.TIMES.windows.items()}
    groups = slo.groups(slo.Times(seconds, 3600, 0.5, 0.5, bad_events=3, requests=6))
    (tmp_path / "short.yml").write_text(text(groups))
    run("promtool", "check", "rules", tmp_path / "short.yml")
    names = [[rule.name for rule in group.rules] for group in groups]
    assert names == [[rule.name for rule in group.rules] for group in slo.groups()]
    told = [rule.expr for group in groups for rule in group.rules if isinstance(rule, Alert)]
    assert len(told) == 4
    assert all(">= 3 " in expr for expr in told)


# -- who is told ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ({"severity": "page", "alertname": "InferdDown"}, "pager"),
        ({"severity": "ticket", "alertname": "InferdShedding"}, "tickets"),
        ({"severity": "info", "alertname": "InferdTunerRolledBack"}, "log"),
        ({"severity": "none", "alertname": "InferdWatchdog"}, "dead-man"),
        ({"alertname": "SomebodyElses"}, "tickets"),
    ],
)
def test_alerts_reach_whom_they_are_for(labels: dict[str, str], receiver: str) -> None:
    run("amtool", "check-config", ALERTMANAGER)
    given = [f"{name}={value}" for name, value in labels.items()]
    told = run("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", *given)
    assert told.split() == [receiver]


def test_every_severity_and_alert_that_alertmanager_is_configured_by_exists() -> None:
    config = yaml.safe_load(ALERTMANAGER.read_text())
    matchers = [
        matcher
        for one in (*config["route"]["routes"], *config["inhibit_rules"])
        for key in ("matchers", "source_matchers", "target_matchers")
        for matcher in one.get(key, [])
    ]
    parsed = [re.fullmatch(r'(\w+) =~? "?([^"]+)"?', matcher) for matcher in matchers]
    assert len(parsed) > 4
    assert all(parsed)
    existing = {
        "severity": {alert["labels"]["severity"] for alert in ALERTS},
        "alertname": {alert["alert"] for alert in ALERTS},
        "slo": {one.name for one in slo.SLOS},
    }
    for match in parsed:
        assert match is not None
        assert any(re.fullmatch(match[2], value) for value in existing[match[1]]), match[0]
