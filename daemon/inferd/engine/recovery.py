"""Recovers from a failed run: finds the request at fault, and makes its pool usable again."""

import time
from collections.abc import Sequence
from functools import partial

import structlog

from inferd.engine.failed_inputs import FailedInputs
from inferd.engine.pool import Pool
from inferd.engine.shape_check import ShapeCheck
from inferd.errors import FailsTooOften, InferdError, InferenceFailed
from inferd.requests import Request
from inferd.scheduling.failure_budget import FailureBudget
from inferd.scheduling.scheduler import Scheduler
from inferd.scheduling.sweeps import Sweeps

log = structlog.get_logger("inferd.engine")


class Recovery:
    """Keeps requests off models that a failed run has tainted (``inferd.engine.rebuild``), and rebuilds those models.
    Requests wait meanwhile, within their deadlines. One instance serves the ``pools`` of a model version.
    """

    def __init__(
        self, labels: dict[str, object], pools: Sequence[Pool], scheduler: Scheduler, *, shapes: ShapeCheck | None
    ) -> None:
        self._labels = labels
        self._pools = pools
        self._scheduler = scheduler
        self._shapes = shapes
        self._culprit: Request | None = None
        self.paused: set[int] = set()
        """The pools that nothing is started on."""
        self.alert = False
        """Whether to check requests with :meth:`known_failure`."""
        self._failed_inputs = FailedInputs()
        self._failure_budget = FailureBudget()
        self._since: dict[int, int] = {}
        self.sweeps = Sweeps()

    def known_failure(self, request: Request, now: int) -> InferdError | None:
        """The error for ``request`` if it should not run: its input has just failed, or its client's fail too often."""
        if request.shadow:
            # A probe must find out whether it still fails.
            return None
        if wait := self._failure_budget.wait(request.client, now):
            return FailsTooOften(str(self._labels["model"]), request.client, wait / 1e9)
        known_failure = self._failed_inputs.find(request, now)
        self.alert = bool(self._failed_inputs or self._failure_budget)
        return known_failure

    def blame(self, index: int, request: Request, failed: InferdError) -> InferdError:
        """The error for ``request``, whose run failed through no fault of another request. If its shapes explain the
        failure, they are refused from now on."""
        if not self._pools[index].tainted or not isinstance(failed, InferenceFailed):
            return failed
        now = time.monotonic_ns()
        self.sweeps.failed(now)
        self._culprit = request
        if self._shapes is not None and not self._shapes.slow:
            try:
                self._shapes.learn(request.inputs)
                self._shapes.check(failed.model, request.inputs)
            except InferdError as invalid:
                return invalid.bare()
        if request.step is None and not request.shadow:
            # Without sequences: theirs may have failed on the state they carry.
            self.alert = True
            self._failed_inputs.keep(request, failed, now)
        return failed

    def pause(self, index: int, now: int) -> None:
        """Start nothing on the pool if it is tainted."""
        if self._pools[index].tainted and index not in self.paused:
            self.paused.add(index)
            self._since[index] = now
            self._scheduler.pause(index, now)

    def proceed(self, index: int) -> str | None:
        """Rebuild the model once nothing runs on it. None until that is done, then "", or why it failed."""
        pool = self._pools[index]
        if pool.rebuild_error:
            return f"a failed run left the model unfit, and rebuilding it failed: {pool.rebuild_error}"
        if pool.tainted:
            if not pool.in_flight:
                culprit = self._culprit
                if culprit is not None and self._shapes is not None and self._shapes.slow:
                    pool.rebuild(partial(self._shapes.learn, culprit.inputs))
                else:
                    pool.rebuild()
            return None
        self.paused.discard(index)
        culprit, self._culprit = self._culprit, None
        if culprit is not None and not culprit.shadow:
            now = time.monotonic_ns()
            self._failure_budget.charge(culprit.client, now - self._since[index], now)
            self.alert = True
        log.info("model rebuilt after a failed run", **self._labels, device=pool.device, times=pool.rebuilds)
        self._scheduler.resume(index)
        return ""
