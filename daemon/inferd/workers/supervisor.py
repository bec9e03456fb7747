"""The shell around :mod:`inferd.workers.life`: starts workers, hears them, replaces, reloads and ends them."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from inferd.supervision.notify import Notifier
from inferd.supervision.served import Served
from inferd.workers.life import ALIVE, SERVING, Event, Life, State, ready
from inferd.workers.place import Place
from inferd.workers.process import Ear, Process

log = structlog.get_logger("inferd.workers")

# Between two looks at who is silent and who is due, in seconds.
_LOOK = 1.0
# A worker says something every few seconds while it starts; importing all there is takes some.
_SILENT_START = 90.0
# What a worker that is aborted gets to write down where it was, and what one gets beyond its own time to drain.
_ABORTING, _GRACE = 10.0, 5.0
# How long one worker's reload may keep the next from its own.
_LONGEST_RELOAD = 600.0
# How much longer systemd is asked to wait each time a worker that starts is heard.
_EXTENSION = 60.0
# A worker that ends like this at its first start would do so again: wrong usage, a failed start, a setting.
_NO_USE = frozenset({2, 3, 78})


@dataclass(frozen=True, slots=True)
class Job:
    """A worker: which it is, what to run, and on which CPUs."""

    place: Place
    command: tuple[str, ...]
    cpus: frozenset[int]


@dataclass(slots=True)
class _Worker:
    job: Job
    ear: Ear
    life: Life = field(default_factory=Life)
    process: Process | None = None
    status: str = ""
    reloads: int = 0
    aborted: float | None = None


class Workers:
    """All the workers, from :meth:`start` to the end of :meth:`drain`; on the event loop's thread but for what it says.

    The first is started alone, so that what is compiled is in the cache when the others come. ``complete`` is called
    when all serve for the first time. With ``watchdog`` (seconds) systemd hears that all is well while they say so.
    """

    def __init__(
        self, jobs: Sequence[Job], notifier: Notifier, watchdog: float | None, complete: Callable[[], None]
    ) -> None:
        self._workers = tuple(_Worker(job, Ear(job.place)) for job in jobs)
        self._notifier = notifier
        self._watchdog = watchdog
        # Theirs is shorter: one that hangs is replaced before systemd would end them all.
        self._limit = watchdog / 2 if watchdog is not None else None
        self._complete = complete
        self._was_complete = False
        self._draining = False
        self._said = ""
        self._fed = 0.0
        self._changed = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._unclean = False
        self._tasks: list[asyncio.Task[None]] = []
        self.replaced = 0

    # -- what it says; any thread may ask -----------------------------------------

    @property
    def states(self) -> tuple[State, ...]:
        return tuple(worker.life.state for worker in self._workers)

    @property
    def ready(self) -> bool:
        """Whether enough of them serve."""
        return not self._draining and ready(self.states, self._was_complete)

    @property
    def present(self) -> dict[tuple[int, int], Place]:
        """The processes there are, by the number of the worker and of its generation."""
        return {(w.job.place.index, w.life.generation): w.job.place for w in self._workers if w.life.state in ALIVE}

    @property
    def served(self) -> Served | None:
        """Models that all of them serve; None before any has said so."""
        told = [s for w in self._workers if w.life.state in SERVING and (s := Served.read(w.status)) is not None]
        if not told:
            return None
        return Served(*(how(getattr(s, name) for s in told) for how, name in _OF_ALL))

    # -- from start to end --------------------------------------------------------

    def start(self) -> None:
        """Called once, on the loop."""
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            loop.add_reader(worker.ear.fileno(), self._hear, worker)
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._keep_reloading())]

    async def failed(self) -> int:
        """The exit status of a worker that could not be started at all, once there is one."""
        return await asyncio.shield(self._failed)

    def reload(self) -> None:
        """Have all reload, one after the other; asked again meanwhile, once more after that."""
        self._reload_wanted.set()

    async def drain(self, seconds: float) -> bool:
        """End all, giving each what it needs for its own drain and in all so many ``seconds``; False where that did not
        go well."""
        self._draining = True
        for worker in self._workers:
            worker.life.see(Event.TOLD, time.monotonic())
            if worker.process is not None and worker.life.state is State.ENDING:
                worker.process.tell_to_end()
        try:
            async with asyncio.timeout(seconds + _GRACE):
                await self._until(lambda: set(self.states) <= {State.ENDED})
        except TimeoutError:
            log.error("workers did not end in time", workers=[str(state.value) for state in self.states])
            self.kill()
            await self._until(lambda: set(self.states) <= {State.ENDED})
        for task in self._tasks:
            task.cancel()
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            loop.remove_reader(worker.ear.fileno())
            worker.ear.close()
        return not self._unclean

    def kill(self) -> None:
        """End all at once."""
        for worker in self._workers:
            if worker.process is not None and worker.life.state in ALIVE:
                worker.process.signal(signal.SIGKILL)

    # -- one at a time ------------------------------------------------------------

    def _spawn(self, worker: _Worker) -> None:
        loop, index = asyncio.get_running_loop(), worker.job.place.index
        if worker.life.generation:
            self.replaced += 1
        worker.life.see(Event.STARTED, time.monotonic())
        worker.status, worker.aborted = "", None

        def ended(status: int) -> None:
            # A loop that is closed has nobody left to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._ended, worker, status)

        job = worker.job
        worker.process = Process(job.command, job.place, job.cpus, self._limit, ended)
        log.info("worker started", worker=index, pid=worker.process.pid, cpus=_shown(job.cpus))
        self._stir()

    def _ended(self, worker: _Worker, status: int) -> None:
        # What it said last is not to be taken for what the next one says.
        self._hear(worker)
        life, before = worker.life, worker.life.state
        if worker.process is not None:
            worker.process.tell_to_end()
        life.see(Event.DIED, time.monotonic())
        if life.state is State.ENDED:
            self._unclean = self._unclean or status != 0
            log.info("worker ended", worker=worker.job.place.index, status=status)
        else:
            rest = max(0.0, life.due - time.monotonic())
            log.error(
                "worker died", worker=worker.job.place.index, status=status, was=before.value, again_in=round(rest, 1)
            )
            if life.generation == 1 and before is State.STARTING and status in _NO_USE and not self._failed.done():
                self._failed.set_result(status)
        self._stir()

    def _hear(self, worker: _Worker) -> None:
        for said in worker.ear.heard():
            now, life = time.monotonic(), worker.life
            worker.status = said.get("STATUS", worker.status)
            if "RELOADING" in said:
                life.see(Event.RELOADING, now)
            if "READY" in said:
                worker.reloads += life.state is State.RELOADING
                life.see(Event.READY, now)
            # Also while it loads: that it says so shows that it goes on.
            life.heard = now
            if life.state is State.STARTING and not self._was_complete and "EXTEND_TIMEOUT_USEC" in said:
                self._notifier.extend(self._line(), _EXTENSION)
        self._stir()

    # -- all of them --------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            try:
                self._look(time.monotonic())
            except Exception:
                # Not to be fed for long is what makes this heard of.
                log.exception("workers could not be looked after")
            changed = self._changed
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await changed.wait()

    def _look(self, now: float) -> None:
        if self._draining:
            if all(worker.life.state in ALIVE | {State.ENDED} for worker in self._workers):
                self._notifier.alive()
            return
        if self._failed.done():
            return
        alone = self._workers[0].life.generation <= 1 and self._workers[0].life.state in (State.WAITING, State.STARTING)
        for worker in self._workers[:1] if alone else self._workers:
            if worker.life.state is State.WAITING and worker.life.due <= now:
                self._spawn(worker)
        if not self._was_complete and set(self.states) <= SERVING:
            self._was_complete = True
            self._said = self._line()
            self._notifier.ready(self._said)
            self._complete()
        silent = [worker for worker in self._workers if self._silent(worker, now)]
        for worker in silent:
            self._abort(worker, now)
        if not self._was_complete:
            return
        if not silent and now - self._fed >= _LOOK:
            self._fed = now
            self._notifier.alive()
        if (line := self._line()) != self._said:
            self._said = line
            self._notifier.status(line)

    def _silent(self, worker: _Worker, now: float) -> bool:
        if self._limit is None:
            return False
        starting = worker.life.state is State.STARTING and now - worker.life.heard > max(self._limit, _SILENT_START)
        return starting or worker.life.silent(now, self._limit)

    def _abort(self, worker: _Worker, now: float) -> None:
        if worker.process is None:
            return
        if worker.aborted is None:
            worker.aborted = now
            log.error("worker is silent; it is replaced", worker=worker.job.place.index)
            worker.process.signal(signal.SIGABRT)
        elif now - worker.aborted > _ABORTING:
            worker.process.signal(signal.SIGKILL)

    async def _keep_reloading(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            if self._was_complete:
                self._notifier.reloading()
            for worker in self._workers:
                await self._reload(worker)
            if self._was_complete:
                self._said = self._line()
                self._notifier.ready(self._said)
            log.info("all workers have reloaded")

    async def _reload(self, worker: _Worker) -> None:
        if worker.process is None or worker.life.state not in ALIVE or not worker.status:
            # One that is not up yet reads everything as it is now; one without a handler would die of the signal.
            return
        serves, before = worker.life.state in SERVING, (worker.life.generation, worker.reloads)
        worker.process.signal(signal.SIGHUP)
        if not serves:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_RELOAD):
                await self._until(
                    lambda: (worker.life.generation, worker.reloads) != before or worker.life.state not in SERVING
                )

    def _line(self) -> str:
        serving, wanted = sum(state in SERVING for state in self.states), len(self._workers)
        models = str(self.served) if self.served is not None else self._workers[0].status or "starting"
        return models if serving == wanted else f"{models}; {serving} of {wanted} workers"

    def _stir(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()


_OF_ALL: tuple[tuple[Callable[..., int], str], ...] = ((min, "serving"), (max, "wanted"), (max, "loading"))


def _shown(cpus: frozenset[int]) -> str:
    """As the kernel writes it, such as ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
