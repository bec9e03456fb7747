"""The dashboards' three kinds of panels: graphs, figures and heatmaps."""

from collections.abc import Sequence
from typing import Any

from grafana.source.dashboards.variables import SOURCE
from grafana_foundation_sdk.builders import common, heatmap, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import DashboardLink, FieldColor, ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as words
from grafana_foundation_sdk.models.dashboard import (
    DashboardSpecialValueMapOptions,
    DynamicConfigValue,
    FieldColorModeId,
    SpecialValueMap,
    SpecialValueMatch,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Steps = Sequence[tuple[float, str]]
"""Thresholds: (value, colour from that value on)."""

# A third of the width: three in a row are readable on a laptop.
_WIDTH, _HEIGHT = 8, 8
_FIGURE_WIDTH, _FIGURE_HEIGHT = 3, 4


def line(expr: str, legend: str, *, exemplars: bool = False) -> Dataquery:
    """One query, whose series are named ``legend``."""
    query = Dataquery().expr(expr).legend_format(legend).range()
    return query.exemplar(True) if exemplars else query


def graph(
    title: str,
    description: str,
    unit: str,
    *lines: Dataquery,
    width: int = _WIDTH,
    steps: Steps = (),
    link: DashboardLink | None = None,
    signed: bool = False,
    reach: float | None = None,
) -> timeseries.Panel:
    """Lines over time, from 0 up unless ``signed``; ``steps`` are dashed lines across, always visible.

    ``reach`` is the least maximum of the axis; without it the axis of a line at 0 ends at 100.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(_HEIGHT)
        .targets(_numbered(lines))
        .unit(unit)
        .color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1)
        .fill_opacity(8)
        .show_points(words.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(words.LegendDisplayMode.LIST)
            .placement(words.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(words.TooltipDisplayMode.MULTI).sort(words.SortOrder.DESCENDING))
    )
    panel = panel.axis_soft_min(0) if signed else panel.min(0)
    if steps:
        dashed = common.GraphThresholdsStyleConfig().mode(words.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(steps, "transparent")).thresholds_style(dashed)
        reach = 1.1 * steps[-1][0]
    if reach is not None:
        panel = panel.axis_soft_max(reach)
    return panel if link is None else panel.data_links([link])


def counts(title: str, description: str, *lines: Dataquery, link: DashboardLink | None = None) -> timeseries.Panel:
    """A graph of whole numbers."""
    return graph(title, description, "none", *lines, link=link, reach=2).decimals(0)


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """The same with stacked series.

    Without outlines, because the outline of a series at 0 would cover the series below.
    """
    whole = common.StackingConfig().mode(words.StackingMode.NORMAL).group("A")
    return panel.stacking(whole).fill_opacity(60).line_width(0)


def bars(panel: timeseries.Panel) -> timeseries.Panel:
    """The same as bars, for occasional events."""
    return stacked(panel).draw_style(words.GraphDrawStyle.BARS).fill_opacity(80).line_width(1)


def limit(panel: timeseries.Panel, name: str, colour: str = "red") -> timeseries.Panel:
    """The same with the series whose names match ``name`` as a dashed line, as the limit for the others."""
    return panel.override_by_regexp(
        name,
        [
            _fixed(colour),
            DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            DynamicConfigValue("custom.drawStyle", "line"),
            DynamicConfigValue("custom.lineWidth", 1),
            DynamicConfigValue("custom.fillOpacity", 0),
            DynamicConfigValue("custom.stacking", {"mode": "none", "group": "A"}),
        ],
    )


def coloured(panel: timeseries.Panel, colours: dict[str, str]) -> timeseries.Panel:
    """The same with a fixed colour for each series name."""
    for name, colour in colours.items():
        panel = panel.override_by_name(name, [_fixed(colour)])
    return panel


def right(panel: timeseries.Panel, name: str, unit: str) -> timeseries.Panel:
    """The same with the series whose names match ``name`` in another unit, on the right axis."""
    return panel.override_by_regexp(
        name,
        [
            DynamicConfigValue("unit", unit),
            DynamicConfigValue("custom.axisPlacement", "right"),
            DynamicConfigValue("custom.axisSoftMax", 1),
            DynamicConfigValue("custom.fillOpacity", 0),
        ],
    )


def figure(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    steps: Steps = (),
    base: str = "green",
    texts: dict[str, tuple[str, str]] | None = None,
    nan: str = "",
    decimals: int | None = None,
    width: int = _FIGURE_WIDTH,
) -> stat.Panel:
    """One number; ``base`` is its colour below all ``steps``, ``texts`` maps values to words and colours.

    ``nan`` is shown instead of NaN, which quantiles of no observations are.
    """
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(_FIGURE_HEIGHT)
        .targets(_numbered([line(expr, title)]))
        .unit(unit)
        .thresholds(_thresholds(steps, base))
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .color_mode(words.BigValueColorMode.VALUE)
        .graph_mode(words.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    if texts:
        shown = {value: ValueMappingResult(text=text, color=colour) for value, (text, colour) in texts.items()}
        panel = panel.mappings([ValueMap(options=shown)])
    if nan:
        options = DashboardSpecialValueMapOptions(match=SpecialValueMatch.NA_N, result=ValueMappingResult(text=nan))
        panel = panel.mappings([SpecialValueMap(options=options)])
    return panel


def buckets(title: str, description: str, expr: str, *, unit: str, width: int = _WIDTH) -> heatmap.Panel:
    """A histogram's observations by bucket; ``expr`` returns a series for each ``le``."""
    query = line(expr, "{{le}}").format(PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(_HEIGHT)
        .targets(_numbered([query]))
        .unit("reqps")
        .calculate(False)
        .cell_gap(1)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).exponent(0.5))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_values(heatmap.CellValues().unit("reqps"))
        .show_legend()
        .mode(words.TooltipDisplayMode.SINGLE)
    )


def _numbered(lines: Sequence[Dataquery]) -> list[Any]:
    return [query.ref_id(chr(ord("A") + number)).datasource(SOURCE) for number, query in enumerate(lines)]


def _thresholds(steps: Steps, base: str) -> ThresholdsConfig:
    known = [Threshold(value=None, color=base), *(Threshold(value=value, color=colour) for value, colour in steps)]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(known)


def _fixed(colour: str) -> DynamicConfigValue:
    return DynamicConfigValue("color", FieldColor().mode(FieldColorModeId.FIXED).fixed_color(colour).build())
