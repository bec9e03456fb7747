"""The shell around the choice of inline runs: observes models, measures runs, and has the catalog switch."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from math import inf

import structlog

from inferd.catalog.catalog import Catalog
from inferd.config.model import ModelConfig
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.deployment.traffic_split import TrafficSplit
from inferd.engine.inline_slot import MOST_NS, left_open
from inferd.engine.warmup import synthetic_inputs
from inferd.errors import InferdError
from inferd.health.inline_choice import InlineChoice
from inferd.rollout.exchange import at_once
from inferd.rollout.synthetic_request import timed

log = structlog.get_logger("inferd.supervision")

# The fastest of this many runs counts.
_RUNS = 20


class InlineRuns:
    """Decides repeatedly whether each model's runs are computed on the event loop's thread.

    Only for models whose settings and operations allow inline runs. ``free`` says whether a version may switch at
    present; ``told`` is called after each switch, with whether runs are inline now. Runs of at most ``most``
    nanoseconds may become inline; ``clock`` gives seconds.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        free: Callable[[ModelVersion], bool] = lambda _: True,
        told: Callable[[ModelVersion, bool], None] = lambda _, __: None,
        most: float = MOST_NS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._free = free
        self._told = told
        self._most = most
        self._clock = clock
        self._choices: dict[ModelVersion, InlineChoice] = {}
        self._measuring: set[ModelVersion] = set()

    def look(self, held: Iterable[tuple[ModelVersion, Deployment]]) -> list[Coroutine[None, None, None]]:
        """Start the measurements that are due for the ``held`` versions."""
        now = self._clock()
        eligible = {
            model_version: deployment for model_version, deployment in held if _may_change(model_version, deployment)
        }
        self._choices = {
            model_version: self._choices.get(model_version) or InlineChoice(self._most, now)
            for model_version in eligible
        }
        work = []
        for model_version, deployment in eligible.items():
            if (
                model_version in self._measuring
                or model_version.split is not None
                or model_version.is_canary
                or model_version.unready_reason
            ):
                continue
            choice, dispatcher = self._choices[model_version], deployment.dispatcher
            if choice.look(
                now, dispatcher.completed, dispatcher.scheduler.service_time, inline=deployment.inline
            ) and self._free(model_version):
                self._measuring.add(model_version)
                work.append(self._measure(model_version, deployment, choice))
        return work

    async def _measure(self, model_version: ModelVersion, deployment: Deployment, choice: InlineChoice) -> None:
        """Time some inline runs, and decide by the fastest one."""
        before, labels = deployment.inline, {"model": model_version.name, "version": model_version.version}
        inline, took, most = before, inf, choice.most(inline=before)
        try:
            if before:
                took = await _longest(deployment, deployment, most)
                if took > most:
                    inline = not await self._catalog.roll_out(
                        model_version, _own(model_version, deployment), at_once, inline=False
                    )
            else:

                async def quick(split: TrafficSplit) -> bool:
                    nonlocal took
                    if split.candidate.inline:
                        took = await _longest(split.candidate, deployment, most)
                    return took <= most

                inline = await self._catalog.roll_out(
                    model_version, _own(model_version, deployment), quick, inline=True
                )
        except InferdError as error:
            log.debug("inline run measurement failed", **labels, problem=str(error))
        except Exception:
            log.exception("inline run measurement failed", **labels)
        finally:
            self._measuring.discard(model_version)
            choice.measured(self._clock(), before=before, inline=inline)
        if inline != before:
            event = "inline runs enabled" if inline else "inline runs disabled"
            log.info(event, **labels, took_us=round(took / 1000, 1), most_us=round(most / 1000, 1))
            self._told(model_version, inline)


def _may_change(model_version: ModelVersion, deployment: Deployment) -> bool:
    """Whether its settings and operations leave the execution path open."""
    pools = deployment.loaded.pools
    return (
        len(pools) == 1
        and pools[0].may_be_inline
        and model_version.origin is not None
        and left_open(model_version.origin[1])
    )


def _own(model_version: ModelVersion, deployment: Deployment) -> ModelConfig:
    """Its settings without the tuner's choices, which apply to runs that are handed over."""
    if model_version.origin is None:
        return deployment.config
    own = model_version.origin[1]
    return deployment.config.model_copy(update={"execution": own.execution, "batching": own.batching})


async def _longest(deployment: Deployment, asked: Deployment, enough: float) -> float:
    """Nanoseconds of an undisturbed run of ``deployment`` on the slowest of the inputs that clients lately sent to
    ``asked``. Stops once it is clear whether that is ``enough``. Raises errors of the runs."""
    inputs = list(asked.dispatcher.samples) or [
        await asyncio.to_thread(synthetic_inputs, deployment.source, deployment.signature)
    ]
    longest = 0.0
    for one in inputs:
        quickest = inf
        for _ in range(_RUNS):
            stages = await timed(deployment.dispatcher, deployment.signature, one)
            quickest = min(quickest, stages.computed - stages.started)
            if quickest <= enough:
                break
            # Let waiting tasks run.
            await asyncio.sleep(0)
        longest = max(longest, quickest)
        if longest > enough:
            break
    return longest
