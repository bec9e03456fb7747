"""The committed dashboards as data: their panels, their queries, and queries as Grafana would send them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import promql_parser

from tests.conftest import ROOT

GRAFANA = ROOT / "grafana"

Board = dict[str, Any]
Panel = dict[str, Any]

BOARDS: dict[str, Board] = {
    path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}

RATE_INTERVAL = timedelta(seconds=4242)
"""What stands for $__rate_interval in a syntax tree: no query has it otherwise."""

_VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$([A-Za-z_]\w*)")
_LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")


@dataclass(frozen=True, slots=True)
class Query:
    """``expr`` with its variables as they stand in the file; ``where`` says whose it is, ``legend`` how it is named."""

    board: str
    where: str
    expr: str
    legend: str = ""

    def __str__(self) -> str:
        return f"{self.board}: {self.where}"


def panels(board: str) -> list[Panel]:
    """The panels of a dashboard, without the headings of rows."""
    return [panel for panel in BOARDS[board]["panels"] if panel["type"] != "row"]


def targets() -> Iterator[Query]:
    """Each query of each panel."""
    for board in BOARDS:
        for panel in panels(board):
            for target in panel["targets"]:
                where = f"{panel['title']} {target['refId']}"
                yield Query(board, where, target["expr"], target["legendFormat"])


def variables(board: str) -> list[dict[str, Any]]:
    """The variables of a dashboard that are asked of Prometheus."""
    return [one for one in BOARDS[board]["templating"]["list"] if one["type"] == "query"]


def variable_query(variable: Mapping[str, Any]) -> tuple[str, str]:
    """The selector and the label whose values a variable can take."""
    match = _LABEL_VALUES.fullmatch(variable["query"])
    assert match is not None, f"{variable['query']} is not label_values(SELECTOR, LABEL)"
    return match[1], match[2]


def annotations() -> Iterator[Query]:
    """Each query for events drawn over the graphs."""
    for board, text in BOARDS.items():
        for one in text["annotations"]["list"]:
            if "target" in one:
                yield Query(board, f"annotation {one['name']}", one["target"]["expr"])


def expanded(expr: str, values: Mapping[str, str]) -> str:
    """``expr`` with each variable replaced; one without a value fails."""
    return _VARIABLE.sub(lambda match: values[match[1] or match[2]], expr)


def parsed(expr: str) -> promql_parser.Expr:
    """The syntax tree of an expression; variables in quotes stand for themselves."""
    interval = f"[{RATE_INTERVAL.seconds}s]"
    return promql_parser.parse(expr.replace("[$__rate_interval]", interval).replace("[$__range]", "[3h]"))


def selectors(expr: str) -> list[promql_parser.VectorSelector]:
    """All selectors of an expression, those with a range too."""
    return [node for node, _ in nodes(expr) if isinstance(node, promql_parser.VectorSelector)]


def nodes(expr: str) -> list[tuple[promql_parser.Expr, tuple[promql_parser.Expr, ...]]]:
    """Every node of the syntax tree with those above it, outermost first."""
    found: list[tuple[promql_parser.Expr, tuple[promql_parser.Expr, ...]]] = []
    above: list[promql_parser.Expr] = []

    def enter(node: promql_parser.Expr) -> None:
        found.append((node, tuple(above)))
        above.append(node)

    def leave(_: promql_parser.Expr) -> None:
        above.pop()

    promql_parser.walk(parsed(expr), enter, leave)
    return found
