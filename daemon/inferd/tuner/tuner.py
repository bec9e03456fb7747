"""The tuner inside the daemon: finds the best settings for each model, and puts them into service.

It tunes one model at a time. A niced child process measures, and leaves the compiled blob in the
cache. The daemon imports the blob next to the current deployment, compares outputs, gives it a share
of the traffic, and promotes or rejects it. If any step fails, the current deployment keeps serving.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count

import structlog

from inferd.catalog.catalog import Catalog
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.engine.source import ModelSource
from inferd.errors import InferdError
from inferd.tensors import Tensor
from inferd.tuner import conditions
from inferd.tuner.plan import plan
from inferd.tuner.probe_process import ProbeProcess
from inferd.tuner.profile import profile_of
from inferd.tuner.promotion import Promotion
from inferd.tuner.record import COOL_DOWN, RUNS_INLINE, TuningDecision, TuningPhase, TuningRecord
from inferd.tuner.records import TuningRecords
from inferd.tuner.rules import TunerRules
from inferd.tuner.session import Progress, SearchStopped, tune
from inferd.tuning.drift import LoadSample
from inferd.tuning.outcome import Outcome
from inferd.tuning.search import Search

log = structlog.get_logger("inferd.tuning")

# Seconds between checks if nothing wakes the tuner.
_LOOK = 10.0
# Seconds to wait if conditions don't allow tuning.
_WAIT_AFTER_OBJECTION = 30.0
# A profile is valid while its winner reaches this fraction of the throughput measured for it.
_BELIEVED = 0.7
_VERIFYING_WINDOWS = 3
# The child yields to clients.
_NICE = 10


class Tuner:
    """Decides which model version to tune and when, and searches; :class:`Promotion` does the rest."""

    def __init__(
        self,
        rules: TunerRules,
        records: TuningRecords,
        catalog: Catalog,
        *,
        read_conditions: Callable[[], conditions.Conditions] = conditions.read,
    ) -> None:
        self._rules = rules
        self.records = records
        self._catalog = catalog
        self._conditions = read_conditions
        self._last_conditions = read_conditions()
        self._stopping = asyncio.Event()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._probe: ProbeProcess | None = None
        self._tickets = count(1)
        # The record being searched, and the record that it must yield to.
        self._searching: TuningRecord | None = None
        self._goes_first: TuningRecord | None = None
        self.promotion = Promotion(catalog, records, stages=rules.stages, stopping=self._stopping)

    @property
    def enabled(self) -> bool:
        """Whether tuning is on."""
        return self._rules.mode != "off"

    # -- running ------------------------------------------------------------------

    def start(self) -> None:
        """Start tuning, if it is on."""
        if self.enabled:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop tuning, trials included. Harmless when called again."""
        self._stopping.set()
        self._woken.set()
        if (probe := self._probe) is not None:
            # The waiting search sees its child die, and then that the tuner is stopping.
            probe.kill()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._stopping.is_set():
            record = self._next_record()
            if record is not None:
                try:
                    await self._work(record)
                except Exception:
                    # A tuning error must never stop the daemon from serving.
                    log.exception("tuning failed", model=record.source.name)
                    record.cancel("internal error; see the log")
                    record.not_before = time.monotonic() + COOL_DOWN
                    record.decisions[TuningDecision.FAILED] += 1
                continue
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._woken.wait()

    def _next_record(self) -> TuningRecord | None:
        """The next record to work on. Records that operators requested go first, in order; others wait for them."""
        now, target = time.monotonic(), list[TuningRecord]()
        for model_version, deployment in self._catalog.serving():
            record = self.records.find(model_version)
            if record is None or record.phase is TuningPhase.UNTUNABLE or record.status.busy:
                continue
            if deployment.inline:
                # Inline runs have nothing to tune.
                record.cancel(RUNS_INLINE)
                continue
            if record.ticket and record.phase is TuningPhase.SETTLED:
                record.request(record.ticket)
            self._look_for_drift(record, deployment, now)
            if record.phase is TuningPhase.WANTED or (record.profile is not None and not record.verified):
                target.append(record)
        asked = sorted((r for r in target if r.ticket), key=lambda r: r.ticket)
        return next((r for r in asked or target if r.not_before <= now), None)

    def _look_for_drift(self, record: TuningRecord, deployment: Deployment, now: float) -> None:
        """Mark ``record`` for tuning if it has no profile or the load has drifted."""
        if record.phase is not TuningPhase.SETTLED or now < record.not_before:
            return
        if record.profile is None:
            if not record.decisions:
                record.move(TuningPhase.WANTED, "it has no profile")
            return
        if self._rules.mode != "online" or record.profile.pinned or not record.verified:
            return
        (then, before), record.seen = record.seen, (now, deployment.dispatcher.busy_ns)
        if not then or record.seen[1] < before:
            return
        busy = (record.seen[1] - before) / 1e9 / (now - then) / deployment.dispatcher.width
        why = record.drift.observe(LoadSample(deployment.dispatcher.scheduler.service_time, busy))
        if why:
            log.info("retuning requested", model=record.source.name, why=why)
            record.move(TuningPhase.WANTED, why)

    async def _work(self, record: TuningRecord) -> None:
        # The preempted search caused the CPU pressure until now.
        preempted, self._goes_first = self._goes_first is not None, None
        if why := self._reason_to_wait(measuring=preempted):
            record.postpone(why, time.monotonic() + _WAIT_AFTER_OBJECTION)
            log.info("tuning postponed", model=record.source.name, why=why)
        elif record.phase is TuningPhase.SETTLED:
            await self._verify(record)
        else:
            await self._tune(record)

    def _reason_to_wait(self, *, measuring: bool = False) -> str:
        now = self._conditions()
        why = now.reason_to_wait(self._last_conditions, measuring=measuring)
        self._last_conditions = now
        return "the daemon is stopping" if self._stopping.is_set() else why

    def _reason_to_stop(self) -> str:
        """Why to stop the search before its next measurement; called on the search's thread."""
        if (first := self._goes_first) is not None:
            return f"model '{first.source.name}' goes first, requested by an operator"
        return self._reason_to_wait(measuring=True)

    async def _verify(self, record: TuningRecord) -> None:
        """Measure briefly whether the profile is still valid."""
        profile = record.profile
        if profile is None:
            return
        record.move(TuningPhase.VERIFYING)
        record.verified = True
        chosen = profile.chosen
        with self._probing(record.source) as probe:
            seen = await asyncio.to_thread(probe.measure, profile.winner, _VERIFYING_WINDOWS)
        if self._stopping.is_set():
            record.move(TuningPhase.SETTLED)
            return
        rates = sorted(w.rate for w in seen.windows)
        rate = rates[len(rates) // 2] if rates else 0.0
        if chosen is None or rate >= _BELIEVED * chosen.throughput or profile.pinned:
            record.move(TuningPhase.SETTLED)
            return
        why = f"its profile says {chosen.throughput:.4g} answers/s, but now it reaches {rate:.4g}"
        log.warning("profile outdated", model=profile.model, version=profile.version, why=why)
        record.move(TuningPhase.WANTED, why)

    async def _tune(self, record: TuningRecord) -> None:
        record.move(TuningPhase.SEARCHING)
        for other in self.records.all():
            # Conditions allow tuning again, for other records as well.
            other.resume()
        source, begun = record.source, time.monotonic()
        labels = {"model": source.name, "version": source.version}
        log.info("tuning started", **labels, why=record.status_text, budget=self._rules.budget)
        self._searching = record
        try:
            outcome = await asyncio.to_thread(self._search, record, self._samples(record))
        except SearchStopped as stopped:
            record.seconds += time.monotonic() - begun
            record.postpone(
                stopped.why, time.monotonic() + (0.0 if self._goes_first is not None else _WAIT_AFTER_OBJECTION)
            )
            log.info("tuning postponed", model=source.name, why=stopped.why)
            return
        except InferdError as error:
            record.ticket = 0
            self.records.finish(record, TuningDecision.FAILED, str(error))
            return
        finally:
            record.progress = self._searching = None
        record.ticket = 0
        record.seconds += time.monotonic() - begun
        now = datetime.now(UTC).isoformat(timespec="seconds")
        found = profile_of(
            source.name, source.version, record.device, record.key, outcome, time.monotonic() - begun, now
        )
        if found is None:
            self.records.finish(record, TuningDecision.FAILED, outcome.reason)
        else:
            await self.promotion.apply(record, found)

    def _samples(self, record: TuningRecord) -> list[tuple[Tensor, ...]]:
        """Copies of recent client inputs to measure with; empty if there are none."""
        model_version = self.promotion.model_version(record)
        if model_version is None or model_version.deployment is None:
            return []
        return [
            tuple(t._replace(data=bytes(t.data)) if isinstance(t.data, memoryview) else t for t in inputs)
            for inputs in model_version.deployment.dispatcher.samples
        ]

    def _search(self, record: TuningRecord, samples: Sequence[Sequence[Tensor]]) -> Outcome:
        def tell(progress: Progress) -> None:
            record.progress = progress

        with self._probing(record.source, samples) as probe:
            # In the child, because compiling with the hints would disturb clients.
            hints = probe.hints()
            work = plan(self.records.engine, record.source, record.device, record.key, hints, record.candidate)
            search = Search(work.space, work.goal, work.seeds, budget=self._rules.budget)
            outcome = tune(search, probe.measure, self._rules.budget, tell, self._reason_to_stop)
        if self._stopping.is_set():
            # The last measurement failed because the tuner killed the child.
            raise SearchStopped("the daemon is stopping")
        return outcome

    @contextmanager
    def _probing(self, source: ModelSource, samples: Sequence[Sequence[Tensor]] = ()) -> Iterator[ProbeProcess]:
        """A child process to measure with; :meth:`stop` can end it."""
        with ProbeProcess(self._rules.job(source, nice=_NICE, samples=samples)) as probe:
            self._probe = probe
            try:
                yield probe
            finally:
                self._probe = None

    def may_change_path(self, model_version: ModelVersion) -> bool:
        """Whether ``model_version`` may switch between inline and other runs now: not while it is being tuned, nor with
        a pinned profile."""
        record = self.records.find(model_version)
        return record is None or not (record.status.busy or (record.profile is not None and record.profile.pinned))

    def path_changed(self, model_version: ModelVersion, inline: bool) -> None:
        """``model_version`` has switched to ``inline`` runs, which invalidates its profile, or away from them, after
        which it is tuned."""
        record = self.records.find(model_version)
        if record is None or record.phase is TuningPhase.UNTUNABLE or record.status.busy:
            return
        if inline:
            record.cancel(RUNS_INLINE)
            self.records.discard_profile(record)
            return
        record.note("its runs are no longer inline")
        if self.enabled and record.phase is TuningPhase.SETTLED:
            record.move(TuningPhase.WANTED)
            self._woken.set()

    def request(self, record: TuningRecord) -> str:
        """Tune ``record`` ahead of records that no operator requested; returns when, in words. An automatic search
        yields after its present measurement."""
        record.request(next(self._tickets))
        self._woken.set()
        if record.phase is TuningPhase.SEARCHING:
            return "it is being tuned"
        if self._searching is not None and not self._searching.ticket:
            self._goes_first = record
        before = sum(0 < other.ticket < record.ticket for other in self.records.all())
        turn = f"after {before} earlier requests" if before else "next"
        return f"it is tuned {turn}, once conditions allow"
