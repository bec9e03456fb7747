"""The display of ``inferd top``: a table of models that fits the terminal, the busiest models first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from inferd.errors import one_line
from inferd.metrics.rolling import ModelView, ServerView

CURVE = 20
"""How many readings the curve of the throughput shows."""

_CURVE_HEAD = f"last {CURVE} s"
_BURN_MEANS = "the worse error budget: 1× is as fast as allowed, 0.5× half"
_BARS = "▁▂▃▄▅▆▇█"
_GAP = 2
_NAME, _SHORTEST_NAME = 20, 8
_BAD, _GOOD, _HEAD = "bold red", "green", "bold"


def render(view: ServerView, width: int, height: int | None = None, warning: str = "") -> RenderableType:
    """The server and its models in ``width`` columns; ``height`` lines are all there is, ``warning`` comes on top."""
    models = sorted(view.models, key=lambda m: (-m.load, -m.answered, m.model, m.version))
    head = [_server(view)]
    if warning:
        head.append(Text(one_line(warning), "reverse"))
    troubles = [Text(_trouble(m), _BAD) for m in models if m.reason]
    if other := ", ".join(f"{one_line(outcome, 20)} {_plain(rate)}/s" for outcome, rate in view.other.items()):
        troubles.append(Text(f"requests that named no model of this server: {other}"))
    foot = [Text(f"Rates and percentiles of the last {_plain(view.window)} s, budget burn too.", "dim")]
    foot[0].append(" The columns: inferd top --help." if height is None else " q leaves, ? explains the columns.")
    if height is not None:
        # Two lines for a gap and the table's head, one for what is left out.
        troubles = troubles[: max(0, height // 4)]
        room = max(1, height - len(head) - len(troubles) - len(foot) - 3)
        if (left := len(models) - room) > 0:
            foot.insert(0, Text(f"and {left} more", "dim"))
        models = models[:room]
    table = _table(models, width, "dim" if warning else "") if models else Text("no models")
    lines = [*troubles, *foot]
    for text in (*head, *lines):
        text.no_wrap, text.overflow = True, "ellipsis"
    return Group(*head, "", table, *lines)


def explanation() -> list[str]:
    """What each column means, a line each."""
    width = max(len(column.head) for column in _COLUMNS)
    return [f"{column.head:{width}}  {column.means}" for column in _COLUMNS]


def render_explanation(width: int, height: int) -> RenderableType:
    """The same in a terminal of that size, on as many lines as there are."""
    lines = [Text("What the columns mean", _HEAD), Text(), *map(Text, explanation())]
    lines = [*lines[: max(1, height - 1)], Text("? shows the models again, q leaves.", "dim")]
    for text in lines:
        text.no_wrap, text.overflow = True, "ellipsis"
        text.truncate(width, overflow="ellipsis")
    return Group(*lines)


def duration_text(seconds: float) -> str:
    """Such as "3 h 12 min"."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


# -- lines ------------------------------------------------------------------------


def _server(view: ServerView) -> Text:
    said = Text()
    said.append("inferd ", _HEAD)
    phase = one_line(view.phase)
    said.append(phase, _GOOD if phase == "ready" else _BAD)
    said.append(f"  {_plain(view.answered)} answers/s")
    for name in ("shed", "errors"):
        said.append(f"  {_plain(getattr(view, name))} {name}/s", _BAD if getattr(view, name) else "")
    said.append(f"  {view.cpu:.2f} CPUs  {_size(view.rss_bytes)}  up {duration_text(view.uptime)}")
    # OpenVINO's number goes on with that of its build.
    said.append(f"  {one_line(view.version)}, OpenVINO {one_line(view.openvino.partition('-')[0])}", "dim")
    return said


def _trouble(model: ModelView) -> str:
    return one_line(f"{model.model} {model.version}: {model.state} {model.reason}")


# -- the table --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """A column and what it ``means``; where the room is short, those with the highest ``rank`` go first, and 0 never
    goes."""

    head: str
    rank: int
    means: str
    cell: Callable[[ModelView], Text]
    align: Literal["left", "right"] = "right"


def _table(models: Sequence[ModelView], width: int, style: str) -> Table:
    cells = {column.head: [column.cell(model) for model in models] for column in _COLUMNS}
    widths = {head: max(cell_len(head), *(text.cell_len for text in texts)) for head, texts in cells.items()}
    # A long name is cut before a column is dropped, and has what room is left in the end.
    longest, widths["model"] = widths["model"], min(widths["model"], _NAME)
    shown = list(_COLUMNS)
    while _taken(shown, widths) > width and (least := max(shown, key=lambda column: column.rank)).rank:
        shown.remove(least)
    room = widths["model"] + width - _taken(shown, widths)
    widths["model"] = max(_SHORTEST_NAME, min(longest, room))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style=_HEAD)
    for column in shown:
        table.add_column(
            column.head, justify=column.align, no_wrap=True, overflow="ellipsis", width=widths[column.head]
        )
    for place in range(len(models)):
        table.add_row(*(cells[column.head][place] for column in shown), style=style)
    return table


def _taken(columns: Sequence[_Column], widths: Mapping[str, int]) -> int:
    return sum(widths[column.head] for column in columns) + _GAP * (len(columns) - 1)


def _state(model: ModelView) -> Text:
    return Text(one_line(model.state, 20), _GOOD if model.state == "READY" else _BAD)


def _objective(model: ModelView) -> Text:
    if (objective := model.objective) is None:
        return Text("-", "dim")
    asked = f"p{model.percentile:g} ≤ {_duration(objective)}"
    if (within := model.within) is None:
        return Text(asked)
    kept = within >= model.percentile / 100
    # Never rounded up to what it is not.
    return Text(f"{asked} {'✓' if kept else '✗'} {int(within * 1000) / 10:g} %", _GOOD if kept else _BAD)


def _percentile(model: ModelView, value: float | None) -> Text:
    if value is None:
        return Text("-", "dim")
    return Text(f"≥ {_duration(value)}" if value >= model.ceiling else _duration(value))


def _lost(rate: float) -> Text:
    return Text(_plain(rate), _BAD if rate else "dim")


def _curve(model: ModelView) -> Text:
    rates = model.history.answered[-CURVE:]
    top = max(rates, default=0.0)
    bars = (_BARS[round(rate / top * (len(_BARS) - 1))] if top else _BARS[0] for rate in rates)
    return Text(f"{''.join(bars).rjust(CURVE)} 0..{_plain(top)}")


def _burn(model: ModelView) -> Text:
    burns = {"latency": model.latency_burn, "availability": model.availability_burn}
    known = {name: burn for name, burn in burns.items() if burn is not None}
    if not known:
        return Text("-", "dim")
    worst = max(known, key=lambda name: known[name])
    return Text(f"{_plain(known[worst])}× {worst}", _BAD if known[worst] > 1 else _GOOD)


def _tuner(model: ModelView) -> Text:
    return Text(one_line(model.tuner, 20) or "-")


def _tuning(model: ModelView) -> Text:
    # The line begins with the phase, which has a column of its own.
    line = "" if model.tuning == model.tuner else model.tuning.removeprefix(f"{model.tuner}: ")
    return Text(one_line(line, 100))


def _devices(model: ModelView) -> Text:
    # What a device does not tell is 0.
    each = (
        f"{d.device} {_count(d.streams, 'stream')}"
        + (f", {_count(d.threads, 'thread')}" if d.threads else "")
        + (f", {d.precision}" if d.precision else "")
        for d in model.devices
    )
    return Text(one_line("; ".join(each), 90) or "-")


_COLUMNS = (
    _Column("model", 0, "name of the model", lambda m: Text(one_line(m.model, 60)), "left"),
    _Column("version", 6, "its version", lambda m: Text(one_line(m.version, 20))),
    _Column("state", 3, "READY, or why not on a line below the table", _state, "left"),
    _Column("answers/s", 0, "requests answered a second", lambda m: Text(_plain(m.answered))),
    _Column(_CURVE_HEAD, 11, "answers/s in each second; the axis goes from 0 to the highest", _curve, "left"),
    _Column("inferences/s", 10, "rows of the answered requests a second", lambda m: Text(_plain(m.inferences))),
    _Column("load", 5, "requests in the server at a time, on average", lambda m: Text(_plain(m.load))),
    _Column("p50", 4, "half of the answers took less time than this", lambda m: _percentile(m, m.p50)),
    _Column("p99", 0, "99 % of the answers took less time than this", lambda m: _percentile(m, m.p99)),
    _Column("objective", 2, "latency objective, whether it is kept, and the part in time", _objective, "left"),
    _Column("budget burn", 5, _BURN_MEANS, _burn, "left"),
    _Column("waiting", 3, "requests in the queue", lambda m: Text(str(m.waiting))),
    _Column(
        "oldest", 8, "how long the oldest of them has waited", lambda m: Text(_duration(m.oldest) if m.waiting else "-")
    ),
    _Column(
        "in flight",
        7,
        "requests waiting or running, of the most that inferd admits",
        lambda m: Text(f"{m.in_flight}/{m.limit}"),
    ),
    _Column("runs", 5, "busy infer requests, of all", lambda m: Text(f"{m.running}/{m.infer_requests}")),
    _Column("shed/s", 1, "requests refused because of load", lambda m: _lost(m.shed)),
    _Column("errors/s", 1, "requests that failed or ran out of time", lambda m: _lost(m.errors)),
    _Column("refused/s", 9, "the client's own mistakes and cancellations", lambda m: Text(_plain(m.refused))),
    _Column("tuner", 10, "settled, wanted (to be tuned), verifying, searching, trying", _tuner, "left"),
    _Column("runs on", 12, "device, streams, threads in total, precision", _devices, "left"),
    _Column("tuning", 13, "what the tuner found or does", _tuning, "left"),
)


# -- numbers ----------------------------------------------------------------------


def _plain(number: float) -> str:
    """Two or three digits, or as many as stand before the point."""
    if number == 0:
        return "0"
    return f"{number:,.0f}" if number >= 9.95 else f"{number:.1f}" if number >= 0.095 else f"{number:.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    ms = seconds * 1000
    if ms < 0.995:
        return f"{ms:.2f} ms"
    if ms < 99.5:
        return f"{ms:.1f} ms" if ms < 9.95 else f"{ms:.3g} ms"
    return f"{ms:.0f} ms" if ms < 999.5 else f"{seconds:.3g} s" if seconds < 99.5 else duration_text(seconds)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 10**9 else f"{nbytes / 1e6:.0f} MB"
