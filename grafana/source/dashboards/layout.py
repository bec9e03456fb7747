"""A dashboard as rows of panels, 24 columns wide."""

from collections.abc import Iterable, Sequence

from grafana.source.dashboards import links, variables
from grafana_foundation_sdk.builders import heatmap, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard as Board
from grafana_foundation_sdk.builders.dashboard import QueryVariable, Row
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync

Panel = timeseries.Panel | stat.Panel | heatmap.Panel

__all__ = ["Board", "Panel", "arranged"]


def arranged(
    uid: str,
    title: str,
    description: str,
    selected_by: Sequence[QueryVariable],
    rows: Iterable[tuple[str, Sequence[Panel]]],
) -> Board:
    """The dashboard of ``rows``, each a heading and its panels from left to right."""
    board = (
        Board(title)
        .uid(uid)
        .description(description)
        .tags(["inferd"])
        .readonly()
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .links(list(links.others(uid)))
        .variables([variables.datasource(), *selected_by])
    )
    number = 0
    for heading, panels in rows:
        number += 1
        board = board.with_row(Row(heading).id(number))
        for panel in panels:
            number += 1
            board = board.with_panel(panel.id(number))
    return board
