"""The tuner inside the daemon: finds what each model serves best with, and brings it into service.

One model at a time. Measuring is done by a niced process beside the daemon, which also
leaves the compiled blob in the cache; the daemon then imports it next to what serves,
compares answers, gives it some of the traffic and promotes it or not. Whatever goes wrong
on the way, what served before goes on serving.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Literal

import structlog

from inferd.catalog.catalog import Catalog
from inferd.config.model import ExecutionSettings, ModelConfig
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, InvalidRequest, ModelUnavailable, RolloutRejected, UnknownModel, listed
from inferd.lifecycle import ModelState
from inferd.rollout.output_check import configuration_mismatch
from inferd.rollout.rollout import Rollout
from inferd.rollout.trial import STAGES, Stage, Trial
from inferd.tensors import Tensor
from inferd.tuner import conditions
from inferd.tuner.configure import configured, space_of
from inferd.tuner.plan import key_of, plan, tunable_device
from inferd.tuner.probe import effective_of
from inferd.tuner.probe_process import WINDOW_SECONDS, ProbeJob, ProbeProcess
from inferd.tuner.profile import Profile, Profiles, profile_of
from inferd.tuner.record import TuningDecision, TuningPhase, TuningRecord, TuningStatus
from inferd.tuner.session import Progress, SearchStopped, tune
from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.drift import Drift, LoadSample
from inferd.tuning.outcome import Outcome
from inferd.tuning.search import Search

log = structlog.get_logger("inferd.tuning")

# How often, in seconds, the tuner looks around when nothing calls it.
_LOOK = 10.0
# After a bad moment, and between one tuning of a model and the next by itself.
_WAIT_AFTER_OBJECTION = 30.0
_COOL_DOWN = 600.0
# A profile is believed while its winner does this much of what it did when it was measured.
_BELIEVED = 0.7
_VERIFYING_WINDOWS = 3
# The child steps back for whoever is served.
_NICE = 10


@dataclass(frozen=True, slots=True)
class TunerRules:
    """When to tune and with what: the settings of the same names, and the stages of a trial."""

    mode: Literal["off", "start", "online"]
    budget: float
    cpu_threads: int
    cache: Path
    cache_bytes: int
    stages: tuple[Stage, ...] = STAGES


class Tuner:
    """Keeps a :class:`TuningRecord` for each model version that was loaded."""

    def __init__(
        self,
        rules: TunerRules,
        engine: Engine,
        profiles: Profiles,
        read_conditions: Callable[[], conditions.Conditions] = conditions.read,
        on_stored: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``on_stored`` is told of each model that has a new profile."""
        self._rules = rules
        self._engine = engine
        self._profiles = profiles
        self._conditions = read_conditions
        self._on_stored = on_stored
        self._last_conditions = read_conditions()
        # Versions are loaded on worker threads, several at a time.
        self._lock = Lock()
        self._records: dict[tuple[str, int], TuningRecord] = {}
        self._stopping = asyncio.Event()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._probe: ProbeProcess | None = None
        self._tickets = count(1)
        # What is searched, and why it is to make way for another.
        self._searching: TuningRecord | None = None
        self._preempted_by = ""

    # -- loading ------------------------------------------------------------------

    def tuned(self, source: ModelSource) -> ModelSource:
        """``source`` with the settings of its profile, if it has one that holds; on whatever thread loads it."""
        try:
            device, why = tunable_device(self._engine, source)
            key = key_of(self._engine, source, device) if device else {}
        except InferdError:
            # Loading it will say what is wrong.
            return source
        record = TuningRecord(
            source, device, TuningStatus(TuningPhase.SETTLED if device else TuningPhase.UNTUNABLE, why), key=key
        )
        if device:
            record.profile = self._profiles.find(source.name, source.version, device, key)
        with self._lock:
            old = self._records.get((source.name, source.version))
            if old is not None:
                record.decisions, record.seconds = old.decisions, old.seconds
                record.ticket = old.ticket if device else 0
            self._records[source.name, source.version] = record
        if record.profile is None:
            return source
        record.note(f"from the profile of {record.profile.tuned_at}: {record.profile.reason}")
        record.gain = _gain(record.profile)
        return _with(source, record.profile.winner)

    # -- running ------------------------------------------------------------------

    def start(self, catalog: Catalog) -> None:
        """Begin to look around, if the settings say so."""
        if self._rules.mode != "off":
            self._task = asyncio.create_task(self._run(catalog))

    async def stop(self) -> None:
        """Tune no further; returns once nothing is tried any more. Harmless when called again."""
        self._stopping.set()
        self._woken.set()
        if (probe := self._probe) is not None:
            # Whoever waits for its answer sees it die, and then that the tuner is stopping.
            probe.kill()
        if self._task is not None:
            await self._task

    async def _run(self, catalog: Catalog) -> None:
        while not self._stopping.is_set():
            record = self._next_record(catalog)
            if record is not None:
                try:
                    await self._work(catalog, record)
                except Exception:
                    # Tuning is a service to serving and must never be what ends it.
                    log.exception("tuning failed", model=record.source.name)
                    record.cancel("internal error; the log has it")
                    record.not_before = time.monotonic() + _COOL_DOWN
                    record.decisions[TuningDecision.FAILED] += 1
                continue
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._woken.wait()

    def _next_record(self, catalog: Catalog) -> TuningRecord | None:
        """The record with work to do now. What operators asked for goes first, in their order, and is waited for."""
        now, target = time.monotonic(), list[TuningRecord]()
        for model_version, deployment in catalog.serving():
            record = self._records.get((model_version.name, model_version.version))
            if record is None or record.phase is TuningPhase.UNTUNABLE or record.status.busy:
                continue
            if deployment.inline:
                # Nothing is left to tune.
                record.cancel(_INLINE)
                continue
            if record.ticket and record.phase is TuningPhase.SETTLED:
                record.request(record.ticket)
            self._look_for_drift(record, deployment, now)
            if record.phase is TuningPhase.WANTED or (record.profile is not None and not record.verified):
                target.append(record)
        asked = sorted((r for r in target if r.ticket), key=lambda r: r.ticket)
        return next((r for r in asked or target if r.not_before <= now), None)

    def _look_for_drift(self, record: TuningRecord, deployment: Deployment, now: float) -> None:
        """Whether ``record`` should be tuned by the tuner's own wish."""
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
        why = record.drift.observe(LoadSample(deployment.dispatcher.service_time, busy))
        if why:
            log.info("tuning again", model=record.source.name, why=why)
            record.move(TuningPhase.WANTED, why)

    async def _work(self, catalog: Catalog, record: TuningRecord) -> None:
        # What pressed on the cores until now was the search that made way.
        preempted, self._preempted_by = self._preempted_by, ""
        if why := self._reason_to_wait(measuring=bool(preempted)):
            record.postpone(why, time.monotonic() + _WAIT_AFTER_OBJECTION)
            log.info("tuning put off", model=record.source.name, why=why)
        elif record.phase is TuningPhase.SETTLED:
            await self._verify(record)
        else:
            await self._tune(catalog, record)

    def _reason_to_wait(self, *, measuring: bool = False) -> str:
        now = self._conditions()
        why = now.reason_to_wait(self._last_conditions, measuring=measuring)
        self._last_conditions = now
        return "the daemon is stopping" if self._stopping.is_set() else why

    def _stop_reason(self) -> str:
        """Why not to take the next look of a search; on its thread."""
        return self._preempted_by or self._reason_to_wait(measuring=True)

    async def _verify(self, record: TuningRecord) -> None:
        """A short look at whether the profile still tells the truth."""
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
        why = f"its profile says {chosen.throughput:.4g} answers/s, now it is {rate:.4g}"
        log.warning("profile is not what it was", model=profile.model, version=profile.version, why=why)
        record.move(TuningPhase.WANTED, why)

    async def _tune(self, catalog: Catalog, record: TuningRecord) -> None:
        record.move(TuningPhase.SEARCHING)
        for other in self.records():
            # The moment is good, so what they were put off for is over.
            other.resume()
        source, begun = record.source, time.monotonic()
        log.info("tuning", model=source.name, version=source.version, why=record.status_text, budget=self._rules.budget)
        self._searching = record
        try:
            outcome = await asyncio.to_thread(self._search, record, self._samples(catalog, record))
        except SearchStopped as stopped:
            record.seconds += time.monotonic() - begun
            record.postpone(stopped.why, time.monotonic() + (0.0 if self._preempted_by else _WAIT_AFTER_OBJECTION))
            log.info("tuning put off", model=source.name, why=stopped.why)
            return
        except InferdError as error:
            record.ticket = 0
            self._finish(record, TuningDecision.FAILED, str(error))
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
            self._finish(record, TuningDecision.FAILED, outcome.reason)
        else:
            await self._apply(catalog, record, found)

    def _samples(self, catalog: Catalog, record: TuningRecord) -> list[tuple[Tensor, ...]]:
        """What clients sent lately, to measure with; empty where nothing came. The process gets copies."""
        model_version = self._model_version(catalog, record)
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
            # Elsewhere, because compiling what the hints say would disturb who is served.
            hints = probe.hints()
            work = plan(self._engine, record.source, record.device, record.key, hints, record.candidate)
            search = Search(work.space, work.goal, work.seeds, self._rules.budget)
            outcome = tune(search, probe.measure, self._rules.budget, tell, self._stop_reason)
        if self._stopping.is_set():
            # The last look failed because we ended it.
            raise SearchStopped("the daemon is stopping")
        return outcome

    @contextmanager
    def _probing(self, source: ModelSource, samples: Sequence[Sequence[Tensor]] = ()) -> Iterator[ProbeProcess]:
        """A process to measure with, which :meth:`stop` can end."""
        rules = self._rules
        job = ProbeJob(source, rules.cache, rules.cache_bytes, rules.cpu_threads, WINDOW_SECONDS, _NICE, samples)
        with ProbeProcess(job) as probe:
            self._probe = probe
            try:
                yield probe
            finally:
                self._probe = None

    # -- decisions ----------------------------------------------------------------

    async def _apply(self, catalog: Catalog, record: TuningRecord, found: Profile) -> None:
        """Serve as ``found`` says, unless that is how it is served or it proves worse."""
        if self._records.get((record.source.name, record.source.version)) is not record:
            self._finish(record, TuningDecision.STOPPED, "the model was loaded anew meanwhile")
            return
        model_version = self._model_version(catalog, record)
        before = record.candidate
        found = replace(found, previous=before)
        if model_version is None or model_version.deployment is None:
            self._finish(record, TuningDecision.STORED, "the model is not served any more", found)
        elif model_version.deployment.inline:
            self._finish(record, TuningDecision.STOPPED, _INLINE)
        elif found.winner == (kept := before or _current_candidate(model_version.deployment, found.winner)):
            self._finish(record, TuningDecision.KEPT, found.reason, found)
        elif model_version.deployment.signature.in_sequences:
            # Their states are where they are served: moving them would end every live sequence.
            self._finish(record, TuningDecision.STORED, f"from the next load on: {found.reason}", found)
        else:
            target = found.winner.describe()
            record.move(TuningPhase.TRYING, f"trying {target}")
            decision, why = await self._try(catalog, model_version, record.source, found.winner)
            profile: Profile | None = None
            if decision is TuningDecision.PROMOTED:
                profile = found
            elif decision is not TuningDecision.STOPPED:
                profile = replace(found, winner=kept, reason=f"{target} was rolled back: {why}", gains={})
            self._finish(record, decision, f"{target}: {why}", profile)

    async def _try(
        self, catalog: Catalog, model_version: ModelVersion, source: ModelSource, candidate: Candidate
    ) -> tuple[TuningDecision, str]:
        objective = source.config.objective
        rollout = Rollout(
            Trial(objective.latency_slo, objective.percentile, self._rules.stages),
            self._stopping,
            check=configuration_mismatch,
            unready_reasons=lambda: ("", model_version.unready_reason),
        )
        try:
            await catalog.roll_out(model_version, configured(source.config, candidate), rollout.steer)
        except InferdError as error:
            return TuningDecision.FAILED, str(error)
        # Every ending of a rollout is one of a tuning, by the same name.
        return TuningDecision(rollout.result.decision.value), rollout.result.why

    def _finish(
        self, record: TuningRecord, decision: TuningDecision, reason: str, profile: Profile | None = None
    ) -> None:
        """A tuning has ended; ``profile`` is what to serve by from now on, None to leave that as it is."""
        if profile is not None:
            self._store(record, profile)
        record.move(TuningPhase.SETTLED, reason)
        record.decisions[decision] += 1
        record.not_before = time.monotonic() + _COOL_DOWN
        record.verified = True
        record.drift = Drift()
        if record.profile is not None:
            record.gain = _gain(record.profile)
        tell = log.warning if decision in _ROLLED_BACK else log.info
        tell(
            "tuned",
            model=record.source.name,
            version=record.source.version,
            decision=decision.value,
            serving=record.candidate.describe() if record.candidate is not None else "as its settings say",
            why=reason,
        )

    def _store(self, record: TuningRecord, profile: Profile) -> None:
        record.profile = profile
        self._profiles.store(profile)
        self._on_stored(record.source.name)

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Count the tunings of ``versions``, of which nothing is there any more, from 0 again."""
        for record in self.records():
            if (record.source.name, str(record.source.version)) in versions:
                record.decisions, record.seconds = Counter(), 0.0

    def _model_version(self, catalog: Catalog, record: TuningRecord) -> ModelVersion | None:
        key = record.source.name, record.source.version
        return next((s for s, _ in catalog.serving() if (s.name, s.version) == key), None)

    # -- what people ask for ------------------------------------------------------

    def records(self) -> list[TuningRecord]:
        """All of them, by name and version."""
        with self._lock:
            return [record for _, record in sorted(self._records.items())]

    def record(self, model: str, version: str) -> TuningRecord:
        """That of ``version``, the newest where empty. Raises UnknownModel or InvalidRequest."""
        records = self.records()
        found = [r for r in records if r.source.name == model]
        if not found:
            raise UnknownModel(model, [r.source.name for r in records])
        if not version:
            return found[-1]
        for record in found:
            if str(record.source.version) == version:
                return record
        raise InvalidRequest(
            model, f"version '{version}' was not loaded; loaded: {listed(r.source.version for r in found)}"
        )

    def may_change_path(self, model_version: ModelVersion) -> bool:
        """Whether it may be changed now where the runs of ``model_version`` are computed: not while they are tuned,
        and not where somebody has pinned how they are."""
        record = self._records.get((model_version.name, model_version.version))
        return record is None or not (record.status.busy or (record.profile is not None and record.profile.pinned))

    def path_changed(self, model_version: ModelVersion, inline: bool) -> None:
        """Where the runs of ``model_version`` are computed has changed: ``inline``, its profile holds no more; else it
        is to be tuned."""
        record = self._records.get((model_version.name, model_version.version))
        if record is None or record.phase is TuningPhase.UNTUNABLE or record.status.busy:
            return
        if inline:
            record.cancel(_INLINE)
            if record.profile is not None:
                record.profile, record.gain = None, 0.0
                self._profiles.remove(model_version.name, model_version.version, record.device)
            return
        record.note("its runs are handed over again")
        if self._rules.mode != "off" and record.phase is TuningPhase.SETTLED:
            record.move(TuningPhase.WANTED)
            self._woken.set()

    def request_tuning(self, catalog: Catalog, record: TuningRecord) -> str:
        """Tune it before all that no operator asked for, as soon as there is a good moment; returns when that is, in
        words. A search by the tuner's own wish makes way after its present look. Raises InvalidRequest where it is not
        to be."""
        if self._rules.mode == "off":
            raise InvalidRequest(record.source.name, "tuning is off; start the server with --tuning start")
        if record.phase is TuningPhase.UNTUNABLE:
            raise InvalidRequest(record.source.name, record.status_text)
        model_version = self._model_version(catalog, record)
        if model_version is not None and model_version.deployment is not None and model_version.deployment.inline:
            raise InvalidRequest(record.source.name, f"{_INLINE}; set execution.path in model.toml to have it tuned")
        record.request(next(self._tickets))
        self._woken.set()
        if record.phase is TuningPhase.SEARCHING:
            return "it is being tuned"
        if self._searching is not None and not self._searching.ticket:
            self._preempted_by = f"model '{record.source.name}' goes first, an operator asked for it"
        before = sum(0 < other.ticket < record.ticket for other in self.records())
        turn = f"after {before} that were asked for before" if before else "next"
        return f"it is tuned {turn}, as soon as there is a good moment"

    def pin(self, record: TuningRecord, pinned: bool) -> None:
        """Keep what its profile says, whatever is measured, or no longer. Raises InvalidRequest without a profile."""
        if record.profile is None:
            raise InvalidRequest(record.source.name, "it has no profile yet, so there is nothing to pin")
        self._store(record, replace(record.profile, pinned=pinned))
        record.note("pinned" if pinned else "no longer pinned")

    async def serve_with(self, catalog: Catalog, record: TuningRecord, change: Callable[[Candidate], Candidate]) -> str:
        """Bring into service what ``change`` makes of what is served now, as a tuning's choice is, and pin it.

        Returns what is served then. Raises InvalidRequest where that can't be asked for, RolloutRejected where it does
        not pass its trial, and ModelUnavailable while the model is being tuned.
        """
        model_version = self._idle(catalog, record)
        name, source, deployment = record.source.name, record.source, model_version.deployment
        if record.phase is TuningPhase.UNTUNABLE:
            raise InvalidRequest(name, record.status_text)
        if deployment is None or deployment.signature.in_sequences:
            raise InvalidRequest(name, "its sequences would end; set it in model.toml and load the model anew")
        tunables = await asyncio.to_thread(self._engine.tunable, record.device, source.cpu_threads)
        # Whatever the device allows, also where model.toml says something else: that is what an operator is for.
        space = space_of(_without_run_settings(source.config), deployment.signature, tunables)
        before = record.candidate or _current_candidate(deployment, next(iter(space.all())))
        target = change(before)
        if problem := _out_of_range(space, target):
            raise InvalidRequest(name, problem)
        record.move(TuningPhase.TRYING, f"trying {target.describe()}")
        decision, why = TuningDecision.FAILED, "an internal error"
        try:
            decision, why = await self._try(catalog, model_version, source, target)
        finally:
            self._finish(record, decision, f"{target.describe()}: {why}")
        if decision is not TuningDecision.PROMOTED:
            raise RolloutRejected(name, decision.value, why)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        profile = record.profile or Profile(
            name, source.version, record.device, record.key, target, "", None, 99.0, False, 0.0, now, {}, ()
        )
        reason = "set by an operator"
        self._store(record, replace(profile, winner=target, previous=before, pinned=True, reason=reason, gains={}))
        record.note("set by an operator, and pinned")
        return target.describe()

    def _idle(self, catalog: Catalog, record: TuningRecord) -> ModelVersion:
        """What is served of ``record``, which nobody is tuning. Raises ModelUnavailable otherwise."""
        if record.phase in (TuningPhase.VERIFYING, TuningPhase.SEARCHING, TuningPhase.TRYING):
            raise ModelUnavailable(
                record.source.name, f"being tuned ({record.phase.value})", "try again when that has ended"
            )
        model_version = self._model_version(catalog, record)
        if model_version is None or model_version.state is not ModelState.READY:
            raise ModelUnavailable(record.source.name, "not served")
        return model_version

    async def roll_back(self, catalog: Catalog, record: TuningRecord) -> str:
        """Serve as before the last promotion, pinned so that it stays so. Returns what is served now.

        Raises InvalidRequest where nothing came before, and what loading raises.
        """
        name, profile = record.source.name, record.profile
        if profile is None:
            raise InvalidRequest(name, "it has no profile, so there is nothing to roll back")
        model_version = self._idle(catalog, record)
        back = profile.previous
        config = configured(record.source.config, back) if back is not None else record.source.config

        async def at_once(_: object) -> bool:
            return True

        record.move(TuningPhase.TRYING, "rolling back")
        reason = "not rolled back: it could not be loaded as before"
        try:
            if not model_version.deployment or not model_version.deployment.signature.in_sequences:
                await catalog.roll_out(model_version, config, at_once)
            reason = "rolled back by an operator, and pinned"
        finally:
            record.move(TuningPhase.SETTLED, reason)
        deployment = model_version.deployment
        winner = back or (_current_candidate(deployment, profile.winner) if deployment is not None else profile.winner)
        self._store(
            record,
            replace(profile, winner=winner, previous=profile.winner, pinned=True, reason="rolled back by an operator"),
        )
        return winner.describe()


_INLINE = "its runs take less time than handing them to another thread would"
_ROLLED_BACK = (TuningDecision.WRONG_OUTPUT, TuningDecision.FAILED, TuningDecision.WORSE)


def _with(source: ModelSource, candidate: Candidate) -> ModelSource:
    return replace(source, config=configured(source.config, candidate))


def _current_candidate(deployment: Deployment, like: Candidate) -> Candidate:
    """What ``deployment`` runs with, spelt out as ``like`` is."""
    entry = deployment.loaded.pools[0]
    return replace(
        effective_of(like, entry.effective, entry.pool.width),
        batch=deployment.max_batch_rows,
        path="sync" if deployment.config.execution.path == "sync" else "async",
    )


def _without_run_settings(config: ModelConfig) -> ModelConfig:
    """``config`` with nothing said about how it is run."""
    own = config.execution
    kept = ExecutionSettings(mode=own.mode, precision=own.precision, hang_timeout=own.hang_timeout)
    return config.model_copy(update={"execution": kept})


def _out_of_range(space: Space, target: Candidate) -> str:
    """Why ``target`` can't be asked for; "" where it can. Quantities may lie between those a search would try."""
    for axis in ("streams", "threads", "requests", "batch"):
        value, most = getattr(target, axis), getattr(space, axis)[-1]
        if not 1 <= value <= most:
            return f"{axis} must be 1..{most}, not {value}"
    if target.streams > min(target.threads, target.requests):
        return f"{target.streams} streams need as many threads and requests at least"
    if target.pinning not in (*space.pinning, None):
        return "the device knows no pinning"
    return ""


def _gain(profile: Profile) -> float:
    return next((ratio for name, ratio in profile.gains.items() if "THROUGHPUT" in name), 0.0)
