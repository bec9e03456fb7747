"""The shell around the choice of inline runs: looks at what models do, measures, and has the catalog swap."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from math import inf

import structlog

from inferd.catalog import Beside, Catalog, Live, Served
from inferd.catalog.shadow import timed
from inferd.config.model import ModelConfig
from inferd.engine.inline_slot import MOST_NS, left_open
from inferd.engine.warmup import made_up
from inferd.errors import InferdError
from inferd.supervision.inline_choice import InlineChoice

log = structlog.get_logger("inferd.supervision")

# Of so many runs the quickest counts.
_RUNS = 20


class InlineRuns:
    """Decides again and again whether the runs of each model are computed on the event loop's thread.

    Only for models that may be inline by their settings and by what they compute. ``free`` says whether a version is
    left to this choice at present; ``told`` hears of each change, with whether runs are inline now. ``most`` is the
    nanoseconds that a run may take to become inline, ``clock`` gives seconds.
    """

    def __init__(
        self,
        catalog: Catalog,
        free: Callable[[Served], bool] = lambda _: True,
        told: Callable[[Served, bool], None] = lambda _, __: None,
        most: float = MOST_NS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._free = free
        self._told = told
        self._most = most
        self._clock = clock
        self._choices: dict[Served, InlineChoice] = {}
        self._measuring: set[Served] = set()

    def look(self, held: Iterable[tuple[Served, Live]]) -> list[Coroutine[None, None, None]]:
        """What is to be done now for those that are ``held``."""
        now = self._clock()
        eligible = {served: live for served, live in held if _may_change(served, live)}
        self._choices = {served: self._choices.get(served) or InlineChoice(self._most, now) for served in eligible}
        work = []
        for served, live in eligible.items():
            if served in self._measuring or served.beside is not None or served.on_trial or served.ailing:
                continue
            choice, dispatcher = self._choices[served], live.dispatcher
            if choice.look(now, dispatcher.completed, dispatcher.service_time, inline=live.inline) and self._free(
                served
            ):
                self._measuring.add(served)
                work.append(self._measure(served, live, choice))
        return work

    async def _measure(self, served: Served, live: Live, choice: InlineChoice) -> None:
        """Have runs computed where the quickest of some inline ones says."""
        before, labels = live.inline, {"model": served.name, "version": served.version}
        inline, took, most = before, inf, choice.most(inline=before)
        try:
            if before:
                took = await _longest(live, live, most)
                if took > most:
                    inline = not await self._catalog.roll_out(served, _own(served, live), _at_once, inline=False)
            else:

                async def quick(beside: Beside) -> bool:
                    nonlocal took
                    if beside.candidate.inline:
                        took = await _longest(beside.candidate, live, most)
                    return took <= most

                inline = await self._catalog.roll_out(served, _own(served, live), quick, inline=True)
        except InferdError as error:
            log.debug("inline runs could not be measured", **labels, problem=str(error))
        except Exception:
            log.exception("inline runs could not be measured", **labels)
        finally:
            self._measuring.discard(served)
            choice.measured(self._clock(), before=before, inline=inline)
        if inline != before:
            event = "runs are inline now" if inline else "runs are handed over now"
            log.info(event, **labels, took_us=round(took / 1000, 1), most_us=round(most / 1000, 1))
            self._told(served, inline)


def _may_change(served: Served, live: Live) -> bool:
    """Whether its settings and what it computes leave it open where its runs are computed."""
    pools = live.loaded.pools
    return len(pools) == 1 and pools[0].may_be_inline and served.origin is not None and left_open(served.origin[1])


def _own(served: Served, live: Live) -> ModelConfig:
    """What it is served with but for a tuner's choice, which is for runs that are handed over."""
    if served.origin is None:
        return live.config
    own = served.origin[1]
    return live.config.model_copy(update={"execution": own.execution, "batching": own.batching})


async def _at_once(_: Beside) -> bool:
    return True


async def _longest(live: Live, asked: Live, enough: float) -> float:
    """Nanoseconds that a run of ``live`` takes where nothing disturbs it: of what clients lately ``asked``, the input
    that takes longest. No more is measured than shows whether that is ``enough``. Raises what keeps it from running."""
    inputs = list(asked.dispatcher.samples) or [await asyncio.to_thread(made_up, live.source, live.signature)]
    longest = 0.0
    for one in inputs:
        quickest = inf
        for _ in range(_RUNS):
            stages = await timed(live.dispatcher, live.signature, one)
            quickest = min(quickest, stages.computed - stages.started)
            if quickest <= enough:
                break
            # Others have waited.
            await asyncio.sleep(0)
        longest = max(longest, quickest)
        if longest > enough:
            break
    return longest
