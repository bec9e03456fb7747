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

from inferd.catalog import Catalog, Live, Served
from inferd.config.model import Execution, ModelConfig
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, InvalidRequest, ModelUnavailable, NotAdopted, UnknownModel, listed
from inferd.lifecycle import ModelState
from inferd.tensors import Tensor
from inferd.tuning import conditions
from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.configure import configured, space_of
from inferd.tuning.drift import Drift, Sight
from inferd.tuning.outcome import Outcome
from inferd.tuning.plan import key_of, plan, tunable_device
from inferd.tuning.probe import effective_of
from inferd.tuning.probe_process import WINDOW_SECONDS, Job, ProbeProcess
from inferd.tuning.profile import Profile, Profiles, profile_of
from inferd.tuning.record import Decision, Phase, Record, Standing
from inferd.tuning.rollout import Rollout
from inferd.tuning.search import Search
from inferd.tuning.session import Progress, Stopped, tune
from inferd.tuning.trial import STAGES, Stage, Trial

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
    """Keeps a :class:`Record` for each model version that was loaded."""

    def __init__(
        self,
        rules: TunerRules,
        engine: Engine,
        profiles: Profiles,
        read_conditions: Callable[[], conditions.Conditions] = conditions.read,
        stored: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``stored`` is told of each model that has a new profile."""
        self._rules = rules
        self._engine = engine
        self._profiles = profiles
        self._conditions = read_conditions
        self._told = stored
        self._before = read_conditions()
        # Versions are loaded on worker threads, several at a time.
        self._lock = Lock()
        self._records: dict[tuple[str, int], Record] = {}
        self._stopping = asyncio.Event()
        self._called = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._probe: ProbeProcess | None = None
        self._asks = count(1)
        # What is searched, and why it is to make way for another.
        self._searched: Record | None = None
        self._makes_way = ""

    # -- loading ------------------------------------------------------------------

    def tuned(self, source: ModelSource) -> ModelSource:
        """``source`` with the settings of its profile, if it has one that holds; on whatever thread loads it."""
        try:
            device, why = tunable_device(self._engine, source)
            key = key_of(self._engine, source, device) if device else {}
        except InferdError:
            # Loading it will say what is wrong.
            return source
        record = Record(source, device, Standing(Phase.SETTLED if device else Phase.UNTUNABLE, why), key=key)
        if device:
            record.profile = self._profiles.find(source.name, source.version, device, key)
        with self._lock:
            old = self._records.get((source.name, source.version))
            if old is not None:
                record.decisions, record.seconds = old.decisions, old.seconds
                record.asked = old.asked if device else 0
            self._records[source.name, source.version] = record
        if record.profile is None:
            return source
        record.tell(f"from the profile of {record.profile.tuned_at}: {record.profile.reason}")
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
        self._called.set()
        if (probe := self._probe) is not None:
            # Whoever waits for its answer sees it die, and then that the tuner is stopping.
            probe.kill()
        if self._task is not None:
            await self._task

    async def _run(self, catalog: Catalog) -> None:
        while not self._stopping.is_set():
            record = self._next(catalog)
            if record is not None:
                try:
                    await self._work(catalog, record)
                except Exception:
                    # Tuning is a service to serving and must never be what ends it.
                    log.exception("tuning failed", model=record.source.name)
                    record.drop("internal error; the log has it")
                    record.not_before = time.monotonic() + _COOL_DOWN
                    record.decisions[Decision.FAILED] += 1
                continue
            self._called.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._called.wait()

    def _next(self, catalog: Catalog) -> Record | None:
        """The record with work to do now. What operators asked for goes first, in their order, and is waited for."""
        now, wanted = time.monotonic(), list[Record]()
        for served, live in catalog.live():
            record = self._records.get((served.name, served.version))
            if record is None or record.phase is Phase.UNTUNABLE or record.standing.busy:
                continue
            if live.inline:
                # Nothing is left to tune.
                record.drop(_INLINE)
                continue
            if record.asked and record.phase is Phase.SETTLED:
                record.ask(record.asked)
            self._consider(record, live, now)
            if record.phase is Phase.WANTED or (record.profile is not None and not record.verified):
                wanted.append(record)
        asked = sorted((r for r in wanted if r.asked), key=lambda r: r.asked)
        return next((r for r in asked or wanted if r.not_before <= now), None)

    def _consider(self, record: Record, live: Live, now: float) -> None:
        """Whether ``record`` should be tuned by the tuner's own wish."""
        if record.phase is not Phase.SETTLED or now < record.not_before:
            return
        if record.profile is None:
            if not record.decisions:
                record.move(Phase.WANTED, "it has no profile")
            return
        if self._rules.mode != "online" or record.profile.pinned or not record.verified:
            return
        (then, before), record.seen = record.seen, (now, live.dispatcher.worked)
        if not then or record.seen[1] < before:
            return
        busy = (record.seen[1] - before) / 1e9 / (now - then) / live.dispatcher.width
        why = record.drift.look(Sight(live.dispatcher.service_time, busy))
        if why:
            log.info("tuning again", model=record.source.name, why=why)
            record.move(Phase.WANTED, why)

    async def _work(self, catalog: Catalog, record: Record) -> None:
        # What pressed on the cores until now was the search that made way.
        made_way, self._makes_way = self._makes_way, ""
        if why := self._objection(measuring=bool(made_way)):
            record.put_off(why, time.monotonic() + _WAIT_AFTER_OBJECTION)
            log.info("tuning put off", model=record.source.name, why=why)
        elif record.phase is Phase.SETTLED:
            await self._verify(record)
        else:
            await self._tune(catalog, record)

    def _objection(self, *, measuring: bool = False) -> str:
        now = self._conditions()
        why = now.objection(self._before, measuring=measuring)
        self._before = now
        return "the daemon is stopping" if self._stopping.is_set() else why

    def _reason_to_stop(self) -> str:
        """Why not to take the next look of a search; on its thread."""
        return self._makes_way or self._objection(measuring=True)

    async def _verify(self, record: Record) -> None:
        """A short look at whether the profile still tells the truth."""
        profile = record.profile
        if profile is None:
            return
        record.move(Phase.VERIFYING)
        record.verified = True
        chosen = profile.chosen
        with self._probing(record.source) as probe:
            seen = await asyncio.to_thread(probe.measure, profile.winner, _VERIFYING_WINDOWS)
        if self._stopping.is_set():
            record.move(Phase.SETTLED)
            return
        rates = sorted(w.rate for w in seen.windows)
        rate = rates[len(rates) // 2] if rates else 0.0
        if chosen is None or rate >= _BELIEVED * chosen.throughput or profile.pinned:
            record.move(Phase.SETTLED)
            return
        why = f"its profile says {chosen.throughput:.4g} answers/s, now it is {rate:.4g}"
        log.warning("profile is not what it was", model=profile.model, version=profile.version, why=why)
        record.move(Phase.WANTED, why)

    async def _tune(self, catalog: Catalog, record: Record) -> None:
        record.move(Phase.SEARCHING)
        for other in self.records():
            # The moment is good, so what they were put off for is over.
            other.resume()
        source, begun = record.source, time.monotonic()
        log.info("tuning", model=source.name, version=source.version, why=record.said, budget=self._rules.budget)
        self._searched = record
        try:
            outcome = await asyncio.to_thread(self._search, record, self._samples(catalog, record))
        except Stopped as stopped:
            record.seconds += time.monotonic() - begun
            record.put_off(stopped.why, time.monotonic() + (0.0 if self._makes_way else _WAIT_AFTER_OBJECTION))
            log.info("tuning put off", model=source.name, why=stopped.why)
            return
        except InferdError as error:
            record.asked = 0
            self._settle(record, Decision.FAILED, str(error))
            return
        finally:
            record.progress = self._searched = None
        record.asked = 0
        record.seconds += time.monotonic() - begun
        now = datetime.now(UTC).isoformat(timespec="seconds")
        found = profile_of(
            source.name, source.version, record.device, record.key, outcome, time.monotonic() - begun, now
        )
        if found is None:
            self._settle(record, Decision.FAILED, outcome.reason)
        else:
            await self._adopt(catalog, record, found)

    def _samples(self, catalog: Catalog, record: Record) -> list[tuple[Tensor, ...]]:
        """What clients sent lately, to measure with; empty where nothing came. The process gets copies."""
        served = self._served(catalog, record)
        if served is None or served.live is None:
            return []
        return [
            tuple(t._replace(data=bytes(t.data)) if isinstance(t.data, memoryview) else t for t in inputs)
            for inputs in served.live.dispatcher.samples
        ]

    def _search(self, record: Record, samples: Sequence[Sequence[Tensor]]) -> Outcome:
        def tell(progress: Progress) -> None:
            record.progress = progress

        with self._probing(record.source, samples) as probe:
            # Elsewhere, because compiling what the hints say would disturb who is served.
            hints = probe.hints()
            work = plan(self._engine, record.source, record.device, record.key, hints, record.candidate)
            search = Search(work.space, work.goal, work.seeds, self._rules.budget)
            outcome = tune(search, probe.measure, self._rules.budget, tell, self._reason_to_stop)
        if self._stopping.is_set():
            # The last look failed because we ended it.
            raise Stopped("the daemon is stopping")
        return outcome

    @contextmanager
    def _probing(self, source: ModelSource, samples: Sequence[Sequence[Tensor]] = ()) -> Iterator[ProbeProcess]:
        """A process to measure with, which :meth:`stop` can end."""
        rules = self._rules
        job = Job(source, rules.cache, rules.cache_bytes, rules.cpu_threads, WINDOW_SECONDS, _NICE, samples)
        with ProbeProcess(job) as probe:
            self._probe = probe
            try:
                yield probe
            finally:
                self._probe = None

    # -- decisions ----------------------------------------------------------------

    async def _adopt(self, catalog: Catalog, record: Record, found: Profile) -> None:
        """Serve as ``found`` says, unless that is how it is served or it proves worse."""
        if self._records.get((record.source.name, record.source.version)) is not record:
            self._settle(record, Decision.STOPPED, "the model was loaded anew meanwhile")
            return
        served = self._served(catalog, record)
        before = record.candidate
        found = replace(found, previous=before)
        if served is None or served.live is None:
            self._settle(record, Decision.STORED, "the model is not served any more", found)
        elif served.live.inline:
            self._settle(record, Decision.STOPPED, _INLINE)
        elif found.winner == (kept := before or _serving(served.live, found.winner)):
            self._settle(record, Decision.KEPT, found.reason, found)
        elif served.live.signature.in_sequences:
            # Their states are where they are served: moving them would end every live sequence.
            self._settle(record, Decision.STORED, f"from the next load on: {found.reason}", found)
        else:
            wanted = found.winner.describe()
            record.move(Phase.TRYING, f"trying {wanted}")
            decision, why = await self._try(catalog, served, record.source, found.winner)
            profile: Profile | None = None
            if decision is Decision.PROMOTED:
                profile = found
            elif decision is not Decision.STOPPED:
                profile = replace(found, winner=kept, reason=f"{wanted} was rolled back: {why}", gains={})
            self._settle(record, decision, f"{wanted}: {why}", profile)

    async def _try(
        self, catalog: Catalog, served: Served, source: ModelSource, candidate: Candidate
    ) -> tuple[Decision, str]:
        objective = source.config.objective
        rollout = Rollout(Trial(objective.latency_slo, objective.percentile, self._rules.stages), self._stopping)
        try:
            await catalog.roll_out(served, configured(source.config, candidate), rollout.steer)
        except InferdError as error:
            return Decision.FAILED, str(error)
        # Every ending of a trial is one of a tuning, by the same name.
        return Decision(rollout.report.decision.value), rollout.report.why

    def _settle(self, record: Record, decision: Decision, said: str, profile: Profile | None = None) -> None:
        """A tuning has ended; ``profile`` is what to serve by from now on, None to leave that as it is."""
        if profile is not None:
            self._store(record, profile)
        record.move(Phase.SETTLED, said)
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
            why=said,
        )

    def _store(self, record: Record, profile: Profile) -> None:
        record.profile = profile
        self._profiles.store(profile)
        self._told(record.source.name)

    def forget(self, versions: Collection[tuple[str, str]]) -> None:
        """Count the tunings of ``versions``, of which nothing is there any more, from 0 again."""
        for record in self.records():
            if (record.source.name, str(record.source.version)) in versions:
                record.decisions, record.seconds = Counter(), 0.0

    def _served(self, catalog: Catalog, record: Record) -> Served | None:
        key = record.source.name, record.source.version
        return next((s for s, _ in catalog.live() if (s.name, s.version) == key), None)

    # -- what people ask for ------------------------------------------------------

    def records(self) -> list[Record]:
        """All of them, by name and version."""
        with self._lock:
            return [record for _, record in sorted(self._records.items())]

    def record(self, model: str, version: str) -> Record:
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

    def leaves_open(self, served: Served) -> bool:
        """Whether it may be changed now where the runs of ``served`` are computed: not while they are tuned, and not
        where somebody has pinned how they are."""
        record = self._records.get((served.name, served.version))
        return record is None or not (record.standing.busy or (record.profile is not None and record.profile.pinned))

    def runs_changed(self, served: Served, inline: bool) -> None:
        """Where the runs of ``served`` are computed has changed: ``inline``, its profile holds no more; else it is to
        be tuned."""
        record = self._records.get((served.name, served.version))
        if record is None or record.phase is Phase.UNTUNABLE or record.standing.busy:
            return
        if inline:
            record.drop(_INLINE)
            if record.profile is not None:
                record.profile, record.gain = None, 0.0
                self._profiles.remove(served.name, served.version, record.device)
            return
        record.tell("its runs are handed over again")
        if self._rules.mode != "off" and record.phase is Phase.SETTLED:
            record.move(Phase.WANTED)
            self._called.set()

    def want(self, catalog: Catalog, record: Record) -> str:
        """Tune it before all that no operator asked for, as soon as there is a good moment; returns when that is, in
        words. A search by the tuner's own wish makes way after its present look. Raises InvalidRequest where it is not
        to be."""
        if self._rules.mode == "off":
            raise InvalidRequest(record.source.name, "tuning is off; start the server with --tuning start")
        if record.phase is Phase.UNTUNABLE:
            raise InvalidRequest(record.source.name, record.said)
        served = self._served(catalog, record)
        if served is not None and served.live is not None and served.live.inline:
            raise InvalidRequest(record.source.name, f"{_INLINE}; set execution.path in model.toml to have it tuned")
        record.ask(next(self._asks))
        self._called.set()
        if record.phase is Phase.SEARCHING:
            return "it is being tuned"
        if self._searched is not None and not self._searched.asked:
            self._makes_way = f"model '{record.source.name}' goes first, an operator asked for it"
        before = sum(0 < other.asked < record.asked for other in self.records())
        turn = f"after {before} that were asked for before" if before else "next"
        return f"it is tuned {turn}, as soon as there is a good moment"

    def pin(self, record: Record, pinned: bool) -> None:
        """Keep what its profile says, whatever is measured, or no longer. Raises InvalidRequest without a profile."""
        if record.profile is None:
            raise InvalidRequest(record.source.name, "it has no profile yet, so there is nothing to pin")
        self._store(record, replace(record.profile, pinned=pinned))
        record.tell("pinned" if pinned else "no longer pinned")

    async def serve_with(self, catalog: Catalog, record: Record, change: Callable[[Candidate], Candidate]) -> str:
        """Bring into service what ``change`` makes of what is served now, as a tuning's choice is, and pin it.

        Returns what is served then. Raises InvalidRequest where that can't be asked for, NotAdopted where it does
        not pass its trial, and ModelUnavailable while the model is being tuned.
        """
        served = self._idle(catalog, record)
        name, source, live = record.source.name, record.source, served.live
        if record.phase is Phase.UNTUNABLE:
            raise InvalidRequest(name, record.said)
        if live is None or live.signature.in_sequences:
            raise InvalidRequest(name, "its sequences would end; set it in model.toml and load the model anew")
        tunables = await asyncio.to_thread(self._engine.tunable, record.device, source.cpu_threads)
        # Whatever the device allows, also where model.toml says something else: that is what an operator is for.
        space = space_of(_left_open(source.config), live.signature, tunables)
        before = record.candidate or _serving(live, next(iter(space.all())))
        wanted = change(before)
        if problem := _problem(space, wanted):
            raise InvalidRequest(name, problem)
        record.move(Phase.TRYING, f"trying {wanted.describe()}")
        decision, why = Decision.FAILED, "an internal error"
        try:
            decision, why = await self._try(catalog, served, source, wanted)
        finally:
            self._settle(record, decision, f"{wanted.describe()}: {why}")
        if decision is not Decision.PROMOTED:
            raise NotAdopted(name, decision.value, why)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        profile = record.profile or Profile(
            name, source.version, record.device, record.key, wanted, "", None, 99.0, False, 0.0, now, {}, ()
        )
        reason = "set by an operator"
        self._store(record, replace(profile, winner=wanted, previous=before, pinned=True, reason=reason, gains={}))
        record.tell("set by an operator, and pinned")
        return wanted.describe()

    def _idle(self, catalog: Catalog, record: Record) -> Served:
        """What is served of ``record``, which nobody is tuning. Raises ModelUnavailable otherwise."""
        if record.phase in (Phase.VERIFYING, Phase.SEARCHING, Phase.TRYING):
            raise ModelUnavailable(
                record.source.name, f"being tuned ({record.phase.value})", "try again when that has ended"
            )
        served = self._served(catalog, record)
        if served is None or served.state is not ModelState.READY:
            raise ModelUnavailable(record.source.name, "not served")
        return served

    async def roll_back(self, catalog: Catalog, record: Record) -> str:
        """Serve as before the last promotion, pinned so that it stays so. Returns what is served now.

        Raises InvalidRequest where nothing came before, and what loading raises.
        """
        name, profile = record.source.name, record.profile
        if profile is None:
            raise InvalidRequest(name, "it has no profile, so there is nothing to roll back")
        served = self._idle(catalog, record)
        back = profile.previous
        config = configured(record.source.config, back) if back is not None else record.source.config

        async def at_once(_: object) -> bool:
            return True

        record.move(Phase.TRYING, "rolling back")
        said = "not rolled back: it could not be loaded as before"
        try:
            if not served.live or not served.live.signature.in_sequences:
                await catalog.roll_out(served, config, at_once)
            said = "rolled back by an operator, and pinned"
        finally:
            record.move(Phase.SETTLED, said)
        live = served.live
        winner = back or (_serving(live, profile.winner) if live is not None else profile.winner)
        self._store(
            record,
            replace(profile, winner=winner, previous=profile.winner, pinned=True, reason="rolled back by an operator"),
        )
        return winner.describe()


_INLINE = "its runs take less time than handing them to another thread would"
_ROLLED_BACK = (Decision.WRONG_OUTPUT, Decision.FAILED, Decision.WORSE)


def _with(source: ModelSource, candidate: Candidate) -> ModelSource:
    return replace(source, config=configured(source.config, candidate))


def _serving(live: Live, like: Candidate) -> Candidate:
    """What ``live`` runs with, spelt out as ``like`` is."""
    entry = live.loaded.pools[0]
    return replace(
        effective_of(like, entry.effective, entry.pool.width),
        batch=live.max_joined,
        path="sync" if live.config.execution.path == "sync" else "async",
    )


def _left_open(config: ModelConfig) -> ModelConfig:
    """``config`` with nothing said about how it is run."""
    own = config.execution
    kept = Execution(mode=own.mode, precision=own.precision, hang_timeout=own.hang_timeout)
    return config.model_copy(update={"execution": kept})


def _problem(space: Space, wanted: Candidate) -> str:
    """Why ``wanted`` can't be asked for; "" where it can. Quantities may lie between those a search would try."""
    for axis in ("streams", "threads", "requests", "batch"):
        value, most = getattr(wanted, axis), getattr(space, axis)[-1]
        if not 1 <= value <= most:
            return f"{axis} must be 1..{most}, not {value}"
    if wanted.streams > min(wanted.threads, wanted.requests):
        return f"{wanted.streams} streams need as many threads and requests at least"
    if wanted.pinning not in (*space.pinning, None):
        return "the device knows no pinning"
    return ""


def _gain(profile: Profile) -> float:
    return next((ratio for name, ratio in profile.gains.items() if "THROUGHPUT" in name), 0.0)
