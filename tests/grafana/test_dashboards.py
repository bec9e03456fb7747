"""The dashboards as files: the series that they query exist, they pass Grafana's dashboard-linter rules, and they
fit."""

import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from grafana.source import dashboards, slo
from grafana.source.dashboards import colours
from grafana_foundation_sdk.models import units

from inferd.errors import InferdError
from inferd.lifecycle import ModelState
from inferd.metrics import instruments
from inferd.metrics.instruments import Instrument
from inferd.tuner.record import TuningDecision
from tests.grafana.boards import (
    BOARDS,
    GRAFANA,
    RATE_INTERVAL,
    Query,
    annotations,
    nodes,
    panels,
    parsed,
    selectors,
    targets,
    variable_query,
    variables,
)

EVERY_BOARD = pytest.mark.parametrize("board", BOARDS)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}


def series_of(instrument: Instrument) -> dict[str, set[str]]:
    """The names of an instrument's series and the labels of each."""
    suffixes = {"counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    labels = {"job", "instance", *instrument.labels}
    return {
        f"{instrument.name}{suffix}": labels | ({"le"} if suffix == "_bucket" else set())
        for suffix in suffixes[instrument.kind]
    }


DECLARED = {name: labels for one in instruments.ALL for name, labels in series_of(one).items()}
# Of every target, of any process and of Python, as the client library and Prometheus make them.
COMMON = ("up", "ALERTS", "process_", "python_gc_")


def recorded() -> set[str]:
    """What the rules in grafana/ record."""
    found: set[str] = set()
    for path in (GRAFANA / "prometheus").rglob("*.yml"):
        for group in yaml.safe_load(path.read_text()).get("groups", []):
            found |= {rule["record"] for rule in group["rules"] if "record" in rule}
    return found


def matchers(selector: promql_parser.VectorSelector) -> set[tuple[str, str, str]]:
    """(label, operator, value) of each matcher."""
    return {(one.name, _sign(one.op), one.value) for one in selector.matchers.matchers}


def _sign(operator: promql_parser.MatchOp) -> str:
    # They can't be keys: they have no hash.
    known = promql_parser.MatchOp
    signs = ((known.Equal, "="), (known.NotEqual, "!="), (known.Re, "=~"), (known.NotRe, "!~"))
    return next(sign for one, sign in signs if one == operator)


def test_the_files_are_what_the_code_makes() -> None:
    made = dashboards.files()
    assert made.keys() == {f"dashboards/{board}.json" for board in ("fleet", "model", "host")}
    assert {path: (GRAFANA / path).read_text() for path in made} == made


def asked(board: str) -> list[Query]:
    """What the panels of a dashboard ask for."""
    return [query for query in targets() if query.board == board]


def everything_asked(board: str) -> list[Query]:
    """The same, and what is asked for annotations."""
    return [query for query in (*targets(), *annotations()) if query.board == board]


# -- what they ask for ------------------------------------------------------------


@EVERY_BOARD
def test_every_series_is_declared_or_recorded(board: str) -> None:
    known = DECLARED.keys() | recorded()
    unknown = [
        (str(query), selector.name)
        for query in everything_asked(board)
        for selector in selectors(query.expr)
        if selector.name not in known and not selector.name.startswith(COMMON)
    ]
    assert unknown == []


@EVERY_BOARD
def test_every_label_that_is_selected_by_is_declared(board: str) -> None:
    wrong = [
        f"{query}: {selector.name} has no label {label}"
        for query in everything_asked(board)
        for selector in selectors(query.expr)
        if selector.name in DECLARED
        for label, _, _ in matchers(selector)
        if label not in DECLARED[selector.name]
    ]
    assert wrong == []


@EVERY_BOARD
def test_variables_ask_for_labels_of_declared_series(board: str) -> None:
    for variable in variables(board):
        selector, label = variable_query(variable)
        [found] = selectors(selector)
        assert label in DECLARED[found.name]


@EVERY_BOARD
def test_only_variables_of_the_dashboard_are_used(board: str) -> None:
    known = {f"${one['name']}" for one in BOARDS[board]["templating"]["list"]}
    values = {value for q in everything_asked(board) for s in selectors(q.expr) for _, _, value in matchers(s)}
    assert {value for value in values if "$" in value} <= known


# -- the rules of dashboard-linter, by its names ----------------------------------


@EVERY_BOARD
def test_template_datasource_rule(board: str) -> None:
    [source] = [one for one in BOARDS[board]["templating"]["list"] if one["type"] == "datasource"]
    assert (source["name"], source["label"], source["query"]) == ("datasource", "Data source", "prometheus")


@EVERY_BOARD
@pytest.mark.parametrize("name", ["job", "instance"])
def test_template_job_and_instance_rules(board: str, name: str) -> None:
    [variable] = [one for one in variables(board) if one["name"] == name]
    assert (variable["label"], variable["datasource"]) == (name.title(), SOURCE)
    assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")


@EVERY_BOARD
def test_template_label_promql_rule(board: str) -> None:
    for variable in variables(board):
        selector, _ = variable_query(variable)
        assert isinstance(parsed(selector), promql_parser.VectorSelector)


@EVERY_BOARD
def test_template_on_time_change_reload_rule(board: str) -> None:
    assert {one["refresh"] for one in variables(board)} == {2}


@EVERY_BOARD
def test_template_unused_rule(board: str) -> None:
    text = " ".join(query.expr for query in asked(board))
    assert [one["name"] for one in variables(board) if f'"${one["name"]}"' not in text] == []


@EVERY_BOARD
def test_panel_datasource_rule(board: str) -> None:
    for panel in panels(board):
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [
            SOURCE,
            *[SOURCE] * len(panel["targets"]),
        ]


@EVERY_BOARD
def test_panel_title_description_rule(board: str) -> None:
    assert [panel["id"] for panel in panels(board) if not panel["title"] or not panel["description"]] == []


@EVERY_BOARD
def test_panel_units_rule(board: str) -> None:
    found = {panel["fieldConfig"]["defaults"]["unit"] for panel in panels(board)}
    found |= {
        changed["value"]
        for panel in panels(board)
        for override in panel["fieldConfig"]["overrides"]
        for changed in override["properties"]
        if changed["id"] == "unit"
    }
    assert found <= UNITS


@EVERY_BOARD
def test_panel_no_targets_rule(board: str) -> None:
    assert [panel["title"] for panel in panels(board) if not panel["targets"]] == []


@EVERY_BOARD
def test_target_promql_rule(board: str) -> None:
    assert [str(query) for query in everything_asked(board) if not selectors(query.expr)] == []


@EVERY_BOARD
def test_target_rate_interval_rule(board: str) -> None:
    fixed = [
        (str(query), str(node))
        for query in asked(board)
        for node, _ in nodes(query.expr)
        if isinstance(node, promql_parser.Call) and node.func.name in ("rate", "irate")
        if node.args[0].range != RATE_INTERVAL
    ]
    assert fixed == []


@EVERY_BOARD
def test_target_job_rule(board: str) -> None:
    assert unselected(board, "job") == []


@EVERY_BOARD
def test_target_instance_rule(board: str) -> None:
    """But for what is recorded of all instances together, and alerts about it."""
    rest = unselected(board, "instance")
    assert [name for name in rest if name != "ALERTS" and not name.startswith("slo:")] == []


def unselected(board: str, label: str) -> list[str]:
    """The series that are asked for whatever the variable ``label`` says."""
    every = [selector for query in everything_asked(board) for selector in selectors(query.expr)]
    return [selector.name for selector in every if (label, "=~", f"${label}") not in matchers(selector)]


@EVERY_BOARD
def test_target_counter_agg_rule(board: str) -> None:
    wrong = []
    for query in asked(board):
        for node, above in nodes(query.expr):
            if isinstance(node, promql_parser.VectorSelector) and node.name.endswith("_total"):
                call, _ = above[-2:]
                if getattr(call, "func", None) is None or call.func.name not in ("rate", "irate", "increase"):
                    wrong.append(str(query))
    assert wrong == []


@EVERY_BOARD
def test_target_histogram_rule(board: str) -> None:
    """But for heatmaps, which draw the buckets themselves."""
    wrong = []
    for query in asked(board):
        for node, above in nodes(query.expr):
            if isinstance(node, promql_parser.VectorSelector) and node.name.endswith("_bucket"):
                calls = {one.func.name for one in above if isinstance(one, promql_parser.Call)}
                if "histogram_quantile" not in calls and "heatmap" not in query.where:
                    wrong.append(str(query))
    assert wrong == []


@EVERY_BOARD
def test_uneditable_dashboard_rule(board: str) -> None:
    assert BOARDS[board]["editable"] is False


# -- what a viewer meets ----------------------------------------------------------


def test_uids_are_fixed_and_titles_tell_the_dashboards_apart() -> None:
    assert {board: (text["uid"], text["title"]) for board, text in BOARDS.items()} == {
        board: (f"inferd-{board}", f"inferd / {board}") for board in ("fleet", "host", "model")
    }
    assert all(text["tags"] == ["inferd"] for text in BOARDS.values())


@EVERY_BOARD
def test_the_last_hour_is_shown_and_refreshed(board: str) -> None:
    text = BOARDS[board]
    assert (text["time"], text["refresh"]) == ({"from": "now-1h", "to": "now"}, "30s")


@EVERY_BOARD
def test_panels_have_ids_and_titles_of_their_own(board: str) -> None:
    ids = [panel["id"] for panel in BOARDS[board]["panels"]]
    titles = [panel["title"] for panel in panels(board)]
    assert sorted(ids) == sorted(set(ids))
    assert sorted(titles) == sorted(set(titles))


@EVERY_BOARD
def test_panels_fill_the_width_and_none_lies_over_another(board: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in BOARDS[board]["panels"]:
        place = panel["gridPos"]
        for x in range(place.get("x", 0), place.get("x", 0) + place["w"]):
            for y in range(place.get("y", 0), place.get("y", 0) + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert {x for x, _ in taken} == set(range(24))
    assert len(taken) == 24 * (1 + max(y for _, y in taken)), "a gap is left"


@EVERY_BOARD
def test_the_lines_of_a_panel_have_names_of_their_own(board: str) -> None:
    for panel in panels(board):
        names = [target["legendFormat"] for target in panel["targets"]]
        assert all(names)
        assert len(names) == len(set(names)), panel["title"]


def urls(thing: Any) -> list[str]:
    """Every url in ``thing``."""
    if isinstance(thing, list):
        return [url for one in thing for url in urls(one)]
    if isinstance(thing, dict):
        return [str(value) for key, value in thing.items() if key == "url"] + urls(list(thing.values()))
    return []


@EVERY_BOARD
def test_links_lead_to_the_other_dashboards(board: str) -> None:
    uids = {text["uid"] for text in BOARDS.values()}
    heads = {link["url"].removeprefix("/d/") for link in BOARDS[board]["links"]}
    assert heads == uids - {BOARDS[board]["uid"]}
    assert all(link["includeVars"] and link["keepTime"] for link in BOARDS[board]["links"])
    found = {url.removeprefix("/d/").partition("?")[0] for url in urls(BOARDS[board])}
    assert heads <= found <= uids


def test_latency_graphs_show_exemplars() -> None:
    asking = [
        panel["title"] for panel in panels("model") for target in panel["targets"] if target.get("exemplar") is True
    ]
    assert asking == ["Duration"]


def test_what_the_tuner_decided_what_was_loaded_and_alerts_are_annotations() -> None:
    names = {board: [query.where for query in annotations() if query.board == board] for board in BOARDS}
    assert names == {
        "fleet": ["annotation Alerts", "annotation Tuning", "annotation Model loads"],
        "host": ["annotation Alerts", "annotation Model loads"],
        "model": ["annotation Alerts", "annotation Tuning", "annotation Model loads"],
    }


# -- agreement with what they draw ------------------------------------------------


def test_the_stages_are_stacked_in_the_order_they_happen() -> None:
    [stages] = [panel for panel in panels("model") if panel["title"] == "Stages"]
    assert tuple(target["legendFormat"] for target in stages["targets"]) == instruments.STAGES


def test_every_outcome_has_a_colour_of_its_own() -> None:
    def below(error: type[InferdError]) -> Iterator[type[InferdError]]:
        for one in error.__subclasses__():
            yield one
            yield from below(one)

    assert colours.OUTCOMES.keys() == {"ok"} | {error.outcome for error in below(InferdError)}
    for named in (colours.OUTCOMES, colours.STAGES, colours.DECISIONS, colours.STATES):
        assert len(set(named.values())) == len(named)


def test_states_and_decisions_are_those_there_are() -> None:
    assert colours.DECISIONS.keys() == {decision.value for decision in TuningDecision}
    assert colours.STATES.keys() == {state.value for state in ModelState}


def test_burn_rates_are_drawn_over_windows_and_against_rates_that_alerts_look_at() -> None:
    assert {burn.factor for burn in slo.BURNS if burn.severity == "page"} <= {rate for rate, _ in colours.BURN_RATES}
    assert colours.WINDOWS.keys() <= {window for burn in slo.BURNS for window in (burn.long, burn.short)}
    matched = {one for query in asked("model") for s in selectors(query.expr) for one in matchers(s)}
    assert {value for label, _, value in matched if label == "slo"} == {one.name for one in slo.SLOS}


# -- how they get into Grafana ----------------------------------------------------


def read(path: str) -> dict[str, Any]:
    """A YAML file below grafana/."""
    return yaml.safe_load((GRAFANA / path).read_text())  # type: ignore[no-any-return]


def test_grafana_is_told_of_a_folder_and_of_the_prometheus_that_fills_it() -> None:
    [provider] = read("provisioning/dashboards/inferd.yml")["providers"]
    [source] = read("provisioning/datasources/inferd.yml")["datasources"]
    assert (provider["type"], source["type"]) == ("file", "prometheus")
    scraped_every = read("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped_every


def test_the_compose_example_mounts_what_there_is_where_it_is_looked_for() -> None:
    compose = read("compose.yml")
    mounted: dict[str, dict[str, str]] = {}
    for service, settings in compose["services"].items():
        mounts = [volume.split(":")[:2] for volume in settings["volumes"]]
        mounted[service] = {target: source for source, target in mounts if source.startswith(".")}
        assert [source for source in mounted[service].values() if not (GRAFANA / source).is_dir()] == []
        assert {source for source, _ in mounts if not source.startswith(".")} <= compose["volumes"].keys()
    [provider] = read("provisioning/dashboards/inferd.yml")["providers"]
    assert mounted["grafana"] == {
        "/etc/grafana/provisioning": "./provisioning",
        provider["options"]["path"]: "./dashboards",
    }
    assert mounted["prometheus"] == {"/etc/prometheus": "./prometheus"}
    assert mounted["alertmanager"] == {"/etc/alertmanager": "./alertmanager"}


def test_the_compose_example_is_pinned_and_listens_on_loopback_where_each_expects_the_other() -> None:
    services = read("compose.yml")["services"]
    assert all(re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]) for service in services.values())
    # They and the daemon meet on the loopback interface.
    assert {service["network_mode"] for service in services.values()} == {"host"}
    listening = {
        name: flag.partition("=")[2]
        for name, service in services.items()
        for flag in service.get("command", [])
        if flag.startswith("--web.listen-address=")
    }
    assert listening == {"prometheus": "127.0.0.1:9090", "alertmanager": "127.0.0.1:9093"}
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    [source] = read("provisioning/datasources/inferd.yml")["datasources"]
    [alerting] = read("prometheus/prometheus.yml")["alerting"]["alertmanagers"]
    told = alerting["static_configs"][0]["targets"]
    assert (source["url"], told) == ("http://localhost:9090", ["localhost:9093"])
