"""When an unfinished run counts as hung, is given up, and has its slot replaced."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from inferd.scheduling.entry import Run
from inferd.scheduling.service_time import ServiceTimes

# The default: the longer of a minute and this many times the slowest run. A model that was warmed up on its smallest
# input may need much longer for its largest.
_SHORTEST = 60_000_000_000
_TIMES = 20
# An overdue run gets this fraction of its time once more: the process itself may have been stopped, and the device's
# threads with it.
_ONCE_MORE = 0.1


@dataclass(frozen=True, slots=True)
class HangRule:
    """Nanoseconds. A run that has not ended ``after`` this time is given up; None derives it from how long runs take.
    Once cancelled, a run has ``cancel_grace`` to end before its slot is replaced."""

    after: int | None = None
    cancel_grace: int = 1_000_000_000

    def allowed(self, times: ServiceTimes, rows: int) -> int:
        """How long a run of ``rows`` may take."""
        if self.after is not None:
            return self.after
        return max(_SHORTEST, int(_TIMES * max(times.slowest, times.expected(rows))))


@dataclass(frozen=True, slots=True)
class HangActions:
    """``given_up`` are the runs that now count as hung, ``replaced`` those whose slots must be replaced."""

    given_up: tuple[Run, ...] = ()
    replaced: tuple[Run, ...] = ()


# Most looks find nothing.
_NOTHING = HangActions()


class _HangStep(Enum):
    """The next step for a run that does not end."""

    NOTICE = "notice"
    GIVE_UP = "give up"
    REPLACE = "replace"


@dataclass(slots=True)
class _RunTimer:
    """One run that began at ``begun`` and may take ``allowed``: the next ``step``, and ``due``, its time."""

    begun: int
    allowed: int
    due: int
    step: _HangStep = _HangStep.NOTICE


class HangDetector:
    """The unfinished runs, and how much longer they may take; without a ``rule``, for ever. ``due`` is when to
    :meth:`look` next, None for never."""

    def __init__(self, rule: HangRule | None) -> None:
        self._rule = rule
        self._timers: dict[Run, _RunTimer] = {}
        self.due: int | None = None

    def begun(self, run: Run, times: ServiceTimes, now: int) -> None:
        """``run`` has started on a pool where runs take ``times``."""
        if self._rule is None:
            return
        allowed = self._rule.allowed(times, run.rows)
        due = now + allowed - int(allowed * _ONCE_MORE)
        self._timers[run] = _RunTimer(now, allowed, due)
        if self.due is None or due < self.due:
            self.due = due

    def ended(self, run: Run) -> None:
        """``run`` has ended. Harmless if it was not begun."""
        self._timers.pop(run, None)

    def took(self, run: Run, now: int) -> int:
        """Nanoseconds since ``run`` began; it has not ended."""
        return now - self._timers[run].begun

    def look(self, now: int) -> HangActions:
        """The steps that are due. A run whose slot must be replaced is reported again and again until it has ended."""
        if self._rule is None or self.due is None or now < self.due:
            return _NOTHING
        given_up, replaced = [], []
        for run, timer in self._timers.items():
            if now < timer.due:
                continue
            match timer.step:
                case _HangStep.NOTICE:
                    once_more = now + int(timer.allowed * _ONCE_MORE)
                    timer.step, timer.due = _HangStep.GIVE_UP, max(timer.begun + timer.allowed, once_more)
                case _HangStep.GIVE_UP:
                    timer.step, timer.due = _HangStep.REPLACE, now + self._rule.cancel_grace
                    given_up.append(run)
                case _HangStep.REPLACE:
                    timer.due = now + self._rule.cancel_grace
                    replaced.append(run)
            timer.due = max(timer.due, now + 1)
        self.due = min((p.due for p in self._timers.values()), default=None)
        return HangActions(tuple(given_up), tuple(replaced))


class HungSlots:
    """The slots held by runs that were given up, in pools of ``widths`` slots.

    ``since`` is when the last usable slot was lost to such a run; None while one is usable, and once
    all pools are disabled.
    """

    def __init__(self, widths: Iterable[int]) -> None:
        self._open = dict(enumerate(widths))
        self._slots: set[tuple[int, int]] = set()
        self.since: int | None = None

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, pool: int, slot: int, now: int) -> None:
        """The run on ``slot`` was given up."""
        self._slots.add((pool, slot))
        self._judge(now)

    def release(self, pool: int, slot: int, now: int) -> bool:
        """The run on ``slot`` has ended, or its infer request was replaced. False if the slot was not held."""
        held = (pool, slot) in self._slots
        self._slots.discard((pool, slot))
        self._judge(now)
        return held

    def disable(self, pool: int, now: int) -> None:
        """Nothing starts on ``pool`` any more. Harmless when it is already disabled."""
        self._open.pop(pool, None)
        self._judge(now)

    def _judge(self, now: int) -> None:
        held = Counter(pool for pool, _ in self._slots)
        if not self._open or any(held[pool] < width for pool, width in self._open.items()):
            self.since = None
        elif self.since is None:
            self.since = now
