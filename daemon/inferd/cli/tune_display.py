"""Shows the progress of a search, and its result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from inferd.axes import AXES, CHOICES, QUANTITIES
from inferd.engine.source import ModelSource
from inferd.tuner.probe_process import ProbeProcess
from inferd.tuner.profile import Profile, Sustained
from inferd.tuner.session import Progress
from inferd.tuning.candidates import Candidate
from inferd.tuning.outcome import Outcome

# The open-loop check is at most this part of what was measured in a closed loop; less where that is too much.
_CHECKED = (0.9, 0.75, 0.6, 0.4)
_CHECK_SECONDS = 3.0
_SHOWN = 12


class TuneDisplay:
    """Shows one search after the other on ``console``: alive on a terminal, a line a look elsewhere."""

    def __init__(self, console: Console, budget: float) -> None:
        self._console = console
        self._budget = budget
        self._live: Live | None = None
        self._title = ""
        self._checked = False

    @contextmanager
    def model(self, name: str, version: int, device: str, size: int) -> Iterator[None]:
        """While this model is searched."""
        self._title = f"{name} {version} on {device}: {size} candidates, {self._budget:g} s"
        self._checked = False
        if not self._console.is_terminal:
            self._say(self._title)
            yield
            return
        with Live(console=self._console, transient=True, refresh_per_second=4) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def tell(self, progress: Progress) -> None:
        """One step of the search."""
        if self._live is not None:
            self._live.update(self._state(progress))
        elif progress.measured is not None:
            seen = progress.measured
            rates = sorted(w.rate for w in seen.windows)
            figure = f"{rates[len(rates) // 2]:.4g}/s" if rates else seen.failure or ""
            best = f"; best {progress.best.candidate.describe()}" if progress.best is not None else ""
            self._say(f"{progress.spent:6.1f} s  {progress.look.candidate.describe()}: {figure}{best}")

    def check(self, probe: ProbeProcess, outcome: Outcome) -> Sustained | None:
        """The winner under random arrivals: the highest of a few rates at which it keeps the objective."""
        winner, latency = outcome.winner, outcome.goal.latency
        if winner is None or latency is None or winner.goodput <= 0:
            return None
        for part in _CHECKED:
            rate = part * winner.goodput
            if self._live is not None:
                self._live.update(f"{self._title}\nchecking {rate:.4g} random arrivals a second")
            window = probe.arrive(winner.candidate, rate, max(_CHECK_SECONDS, 100 / rate))
            if window is None:
                return None
            self._checked = True
            share = window.within(latency) / max(1, len(window.latencies))
            if 100 * share >= outcome.goal.percentile:
                return Sustained(rate, part, share)
        return None

    def untunable(self, source: ModelSource, why: str) -> None:
        """There is nothing to tune."""
        self._console.print(f"{source.name} {source.version}: nothing to tune: {why}", soft_wrap=True, markup=False)

    def result(self, outcome: Outcome, profile: Profile | None) -> None:
        """What was found, and the best of what was measured."""
        chosen = outcome.winner.candidate if outcome.winner is not None else None
        shown = [p for place, p in enumerate(outcome.points) if place < _SHOWN or p.candidate == chosen]
        columns = _columns([p.candidate for p in shown])
        table = Table("", title=self._title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        figures = ("goodput\n/s", "95 %", "p50\nms", f"p{outcome.goal.percentile:g}\nms")
        for heading in (*columns, *figures):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("keeps", no_wrap=True)
        for point in shown:
            table.add_row(
                "*" if point.candidate == chosen else "",
                *(say(point.candidate) for say in columns.values()),
                _plain(point.goodput),
                # As far to both sides.
                f"±{100 * (point.high / point.goodput - 1):.1f} %" if point.goodput else "",
                _plain(point.median * 1000, 3),
                _plain(point.tail * 1000, 3),
                "-" if outcome.goal.latency is None else "yes" if point.eligible else "no",
            )
        self._console.print(table)
        if left := len(outcome.points) - len(shown):
            self._say(f"and {left} more")
        self._say(outcome.reason)
        if profile is not None and profile.sustained is not None:
            held = profile.sustained
            rate = _plain(held.rate)
            self._say(f"random arrivals of {rate}/s ({held.part:.0%} of that): {100 * held.in_time:.4g} % in time")
        elif self._checked:
            self._say("no rate tried keeps the objective under random arrivals")

    def _say(self, text: str) -> None:
        """One line, however long. What OpenVINO says has brackets, which are no markup."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _state(self, progress: Progress) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_row("", self._title)
        grid.add_row("looking at", Text(f"{progress.look.candidate.describe()} ({progress.look.why})"))
        if (best := progress.best) is not None:
            grid.add_row(
                "best so far",
                f"{best.candidate.describe()}: {best.goodput:.4g}/s in time, tail {best.tail * 1000:.3g} ms",
            )
        left = max(0.0, progress.budget - progress.spent)
        grid.add_row(f"{progress.looks} looks", f"{left:.0f} s left at most")
        grid.add_row("", ProgressBar(total=progress.budget, completed=min(progress.spent, progress.budget), width=60))
        return grid


def _columns(candidates: list[Candidate]) -> dict[str, Callable[[Candidate], str]]:
    """What shows each axis, by its heading; choices that nothing was tried on are left out."""
    columns: dict[str, Callable[[Candidate], str]] = {name: partial(_cell, name) for name in QUANTITIES}
    shown = [n for n, a in CHOICES.items() if a.always_shown or any(getattr(c, n) is not None for c in candidates)]
    # First those that every table has.
    for name in sorted(shown, key=lambda n: not CHOICES[n].always_shown):
        columns[CHOICES[name].heading] = partial(_cell, name)
    return columns


def _cell(axis: str, candidate: Candidate) -> str:
    return AXES[axis].cell(getattr(candidate, axis))


def _plain(number: float, digits: int = 4) -> str:
    """So many digits, or as many as stand before the point; never a power of ten."""
    return f"{number:.0f}" if number >= 10 ** (digits - 1) else f"{number:.{digits}g}"
