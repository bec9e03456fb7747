"""Shows a run in progress, its results, and two runs side by side."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from inferd.bench.comparison import QUANTITIES, Compared, compare, unmatched_loads
from inferd.bench.load import Load
from inferd.bench.report import BenchRun, Step
from inferd.bench.server_side import STAGES

_SHOWN = (50.0, 90.0, 99.0, 99.9)
# A smaller difference between two runs is noise more often than not.
_NOISE = 0.03
_BAR = 30
# The rate shown is over this many seconds.
_RATE_OVER = 0.5


class BenchDisplay:
    """Shows a run on ``console``: live on a terminal, otherwise a line for each step. Use as a context."""

    def __init__(self, console: Console, warm_up: float, seconds: float) -> None:
        self._console = console
        self._warm_up, self._seconds = warm_up, seconds
        self._live: Live | None = None
        self._run: BenchRun | None = None
        self._load: Load | None = None
        self._last = (0.0, 0)
        self._rate = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, run: BenchRun, load: Load) -> None:
        """The next step is ``load``; ``run`` has the results so far."""
        self._run, self._load, self._last, self._rate = run, load, (0.0, 0), 0.0
        if self._live is None:
            self._console.print(f"{load.describe()}...", highlight=False)
        else:
            self.tick(0.0, 0, 0)

    def tick(self, elapsed: float, succeeded: int, failed: int) -> None:
        """``elapsed`` seconds after the step began, with the responses so far."""
        then, before = self._last
        # Processes report what they did in the same period one after the other.
        if elapsed - then >= _RATE_OVER:
            self._rate = (succeeded - before) / (elapsed - then)
            self._last = (elapsed, succeeded)
        if self._live is not None and self._run is not None and self._load is not None:
            done = [_title(self._run), _latencies(self._run), Text()] if self._run.steps else [_title(self._run)]
            self._live.update(Group(*done, self._state(self._load, elapsed, failed)), refresh=True)

    def _state(self, load: Load, elapsed: float, failed: int) -> RenderableType:
        whole = self._warm_up + self._seconds
        if elapsed < self._warm_up:
            doing = "warming up"
        else:
            doing = "measuring" if elapsed < whole else "waiting for the last responses"
        line = Table.grid(padding=(0, 2))
        errors = Text(f"{failed} failed", style="red") if failed else Text()
        line.add_row(
            Text(load.describe(), style="bold"),
            ProgressBar(total=whole, completed=min(max(elapsed, 0.0), whole), width=_BAR),
            Text(f"{doing}, {max(0.0, whole - elapsed):.0f} s left" if elapsed < whole else doing),
            Text(f"{figure(self._rate)}/s"),
            errors,
        )
        return line

    def result(self, run: BenchRun) -> None:
        """The results, and the doubts about them."""
        console = self._console
        if not run.steps:
            console.print("interrupted before anything was measured", highlight=False)
            return
        console.print(_title(run))
        console.print(_latencies(run))
        if any(step.server.stages for step in run.steps):
            console.print(_stages(run))
        console.print(_resources(run))
        for step in run.steps:
            if step.window.errors:
                told = ", ".join(f"{count} {code}" for code, count in step.window.errors.items())
                self._say(f"{step.load.describe()}: of {step.window.due} requests {told}", "red")
            for warning in step.warnings():
                self._say(warning, "yellow")
        if (verdict := _verdict(run)) is not None:
            self._say(verdict, "bold")
        if run.interrupted:
            self._say(f"interrupted: the last load was measured for {run.steps[-1].window.seconds:.3g} s", "yellow")

    def _say(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


def comparison(console: Console, first: BenchRun, second: BenchRun, names: Sequence[str]) -> None:
    """Both runs' figures under each load that they share, and the ratio of the second to the first."""
    for name, run in zip(names, (first, second), strict=True):
        console.print(Text.assemble((f"{name}: ", "bold"), run.title, f", {run.inputs}"), soft_wrap=True)
    rows = compare(first, second)
    known = [q for q in QUANTITIES if any(r.quantity is q for r in rows)]
    table = _table("load")
    table.add_column("", no_wrap=True)
    for quantity in known:
        table.add_column(f"{quantity.name}\n{quantity.unit.replace('us', 'µs')}", justify="right", no_wrap=True)
    for load in dict.fromkeys(r.load for r in rows):
        seen = {r.quantity: r for r in rows if r.load == load}
        for name, one in ((names[0], True), (names[1], False)):
            figures = [_side(seen.get(q), first=one) for q in known]
            table.add_row(load.describe() if one else "", name, *figures)
        table.add_row("", "ratio", *(_ratio(seen.get(q)) for q in known), end_section=True)
    if rows:
        console.print(table)
    else:
        console.print("the two runs share no load", highlight=False)
    if left := unmatched_loads(first, second):
        console.print(f"only in one of them: {', '.join(load.describe() for load in left)}", highlight=False)


def figure(number: float, digits: int = 3) -> str:
    """``number`` with ``digits`` digits, or as many as stand before the point; never a power of ten."""
    if number < 0:
        return f"-{figure(-number, digits)}"
    if number >= 10 ** (digits - 1):
        return f"{number:.0f}"
    # "0.50" and not "0.5": columns are easier to read with a fixed number of digits.
    return f"{number:#.{digits}g}" if number >= 0.001 else f"{number:.{digits}g}"


# -- tables -----------------------------------------------------------------------


def _title(run: BenchRun) -> Text:
    processes = f", {run.processes} client processes" if run.processes > 1 else ""
    return Text.assemble((run.title, "bold"), f"\n{run.inputs}{processes}")


def _latencies(run: BenchRun) -> Table:
    table = _table("load")
    _numbers(table, "answers\n/s")
    if run.objective is not None:
        _numbers(table, "goodput\n/s", "in time\n%")
        _numbers(table, "objec-\ntive")
    _numbers(table, *(f"p{p:g}\nms" for p in _SHOWN), "max\nms", "errors\n%")
    for step in run.steps:
        table.add_row(step.load.describe(), *_row(step))
    return table


def _row(step: Step) -> list[str | Text]:
    window = step.window
    row: list[str | Text] = [figure(window.throughput)]
    if step.objective is not None:
        kept = Text("met", style="green") if step.met else Text("missed", style="red")
        row += [figure(window.goodput), _share(window.share_in_time), kept]
    row += map(_quantile, _SHOWN, window.latencies.quantiles(_SHOWN), [window.latencies.count] * len(_SHOWN))
    row.append(_milliseconds(window.latencies.worst))
    failed = sum(window.errors.values())
    return [*row, Text(_share(failed / window.due), style="red") if failed else "0"]


def _stages(run: BenchRun) -> Table:
    """Where a request's time went, as the server reports it."""
    table = _table("at the server")
    _numbers(table, "queue\nms", "input\nms", "infer\nms", "output\nms", "in all\nms", "beyond\nms", "rows\na run")
    for step in run.steps:
        side = step.server
        # Outside what the server knows: the wire, gRPC at both ends, and the client itself.
        beyond = _less(step.window.latencies.mean, side.request)
        times = [*((side.stages or {}).get(name) for name in STAGES), side.request, beyond]
        table.add_row(step.load.describe(), *map(_milliseconds, times), _or_dash(side.rows))
    return table


def _resources(run: BenchRun) -> Table:
    """Resources used: the server's where they are known, the client's always."""
    table = _table("for a request")
    known = any(step.server.cpu is not None for step in run.steps)
    if known:
        _numbers(table, "server CPU\nµs", "server CPU\ncores", "server\nMB", "KB/request\nin flight")
    _numbers(table, "client CPU\nµs", "client CPU\ncores")
    for step in run.steps:
        side, window = step.server, step.window
        row = [
            _or_dash(side.cpu, 1e6),
            _or_dash(side.cores),
            _or_dash(side.rss_bytes, 1e-6),
            _or_dash(step.memory, 1e-3),
        ]
        client = [_or_dash(window.cpu / window.answered if window.answered else None, 1e6)]
        client.append(figure(window.cpu / window.seconds))
        table.add_row(step.load.describe(), *(row if known else []), *client)
    return table


def _verdict(run: BenchRun) -> str | None:
    if run.objective is None or len(run.steps) < 2:
        return None
    kept = [s for s in run.steps if s.met]
    if not kept:
        return f"{run.objective.describe()}: met under none of these loads"
    best = max(kept, key=lambda s: s.window.goodput)
    return f"{run.objective.describe()}: highest goodput at {best.load.describe()}, {figure(best.window.goodput, 4)}/s"


def _table(what: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(what, no_wrap=True)
    return table


def _numbers(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else figure(seconds * 1e3)


def _or_dash(number: float | None, factor: float = 1.0) -> str:
    return "-" if number is None else figure(number * factor)


def _quantile(percentile: float, seconds: float | None, count: int) -> Text:
    # With no response beyond it, the quantile is just the largest value, and the next run's may differ.
    return Text(_milliseconds(seconds), style="dim" if count * (100 - percentile) < 100 else "")


def _share(share: float) -> str:
    """Per cent, never rounded up to 100 or down to 0."""
    return f"{100 * share:.3g}" if share in (0.0, 1.0) or 0.001 <= share <= 0.999 else f"{100 * share:.3f}"


def _less(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else max(0.0, whole - part)


def _side(seen: Compared | None, *, first: bool) -> str:
    if seen is None:
        return "-"
    return figure((seen.first if first else seen.second) * seen.quantity.factor)


def _ratio(seen: Compared | None) -> Text:
    if seen is None or seen.ratio is None:
        return Text("-")
    better = seen.ratio > 1 if seen.quantity.more_is_better else seen.ratio < 1
    style = "" if abs(seen.ratio - 1) < _NOISE else "green" if better else "red"
    return Text(f"{seen.ratio:.2f}x", style=f"bold {style}".strip())
