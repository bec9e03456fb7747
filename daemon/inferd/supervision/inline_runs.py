"""The shell around the choice of inline runs: looks at what models do, measures, and has the catalog swap."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from math import inf

import structlog

from inferd.catalog import Beside, Catalog, Live, Served
from inferd.config.model import ModelConfig
from inferd.engine.inline_slot import MOST_NS, left_open
from inferd.engine.slot import RunFailed
from inferd.engine.warmup import made_up, quickest
from inferd.errors import InferdError
from inferd.supervision.inline_choice import InlineChoice, Wish

log = structlog.get_logger("inferd.supervision")

# Runs of each input that are measured before runs are inline.
_MEASURED = 20


class InlineRuns:
    """Decides again and again whether the runs of each model are computed on the event loop's thread.

    Only for models that may be inline by their settings and by what they compute, one at a time each. ``free`` says
    whether a version is left to this choice at present; ``told`` hears of each change, with whether runs are inline
    now. ``most`` is the nanoseconds that an inline run may take, ``clock`` gives seconds.
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
        self._changing: set[Served] = set()

    def look(self, held: Iterable[tuple[Served, Live]]) -> list[Coroutine[None, None, None]]:
        """What is to be done now for those that are ``held``."""
        now = self._clock()
        eligible = {served: live for served, live in held if _may_change(served, live)}
        self._choices = {served: self._choices.get(served) or InlineChoice(self._most, now) for served in eligible}
        work = []
        for served, live in eligible.items():
            if served in self._changing or served.beside is not None or served.on_trial or served.ailing:
                continue
            dispatcher = live.dispatcher
            wish = self._choices[served].look(
                now, dispatcher.completed, dispatcher.service_time, inline=live.loaded.pools[0].pool.inline
            )
            if wish is not None and self._free(served):
                self._changing.add(served)
                work.append(self._change(served, live, wish))
        return work

    async def _change(self, served: Served, live: Live, wish: Wish) -> None:
        inline = wish is Wish.TRY_INLINE
        labels = {"model": served.name, "version": served.version}
        seen, done, why = live.dispatcher.service_time, False, ""
        took = 0.0

        async def steer(beside: Beside) -> bool:
            nonlocal took
            took = await _quickest(beside) if inline else seen
            return not inline or took <= self._most

        try:
            done = await self._catalog.roll_out(served, _own(served, live), steer, inline=inline)
        except (InferdError, RunFailed) as error:
            why = str(error)
        except Exception:
            log.exception("where runs are computed could not be changed", **labels)
        finally:
            self._changing.discard(served)
            if (choice := self._choices.get(served)) is not None:
                choice.tried(self._clock(), wish, inline=done if inline else not done)
        microseconds = {"took_us": round(took / 1000, 1), "most_us": round(self._most / 1000, 1)}
        if done:
            log.info("runs are inline now" if inline else "runs are handed over now", **labels, **microseconds)
            self._told(served, inline)
        else:
            log.debug("runs stay as they are", **labels, **microseconds, wish=wish.value, problem=why)


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


async def _quickest(beside: Beside) -> float:
    """Nanoseconds that the candidate's runs take where nothing disturbs them: of what clients sent lately, the input
    that takes longest."""
    candidate = beside.candidate
    if not candidate.loaded.pools[0].pool.inline:
        return inf
    inputs = list(beside.incumbent.dispatcher.samples) or [made_up(candidate.source, candidate.signature)]
    pool = candidate.loaded.pools[0].pool
    return max([await asyncio.to_thread(quickest, pool, one, _MEASURED) for one in inputs])
