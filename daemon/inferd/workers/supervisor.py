"""The shell around :mod:`inferd.workers.lifecycle`: starts, observes, replaces, reloads and ends workers."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from inferd.systemd.notify import NotifySender
from inferd.systemd.status_line import StatusLine
from inferd.workers.lifecycle import ALIVE, SERVING, WorkerEvent, WorkerLifecycle, WorkerState, is_ready
from inferd.workers.process import NotifySocket, Process, WorkerSpec
from inferd.workers.worker_identity import WorkerIdentity

log = structlog.get_logger("inferd.workers")

# Seconds between two checks for silent workers and due starts.
_CHECK_INTERVAL = 1.0
# A starting worker reports in every few seconds, but its imports alone take a while.
_MAX_START_SILENCE = 90.0
# How long an aborted worker gets to write a traceback, and how long a drain may exceed its own time.
_ABORTING, _GRACE = 10.0, 5.0
# How long a worker may stay silent without a watchdog.
_MAX_SILENCE = 12.0
# How long one worker's reload may delay the next one's.
_LONGEST_RELOAD = 600.0
# How much more time to request from systemd each time a starting worker reports in.
_EXTENSION = 60.0
# With these exit statuses at its first start, a worker would fail again: wrong usage, a failed start, a bad setting.
_NO_USE = frozenset({2, 3, 78})


@dataclass(slots=True)
class _Worker:
    spec: WorkerSpec
    notify_socket: NotifySocket
    lifecycle: WorkerLifecycle = field(default_factory=WorkerLifecycle)
    process: Process | None = None
    status: str = ""
    reloads: int = 0
    aborted: float | None = None


class WorkerSupervisor:
    """All workers, from :meth:`start` to the end of :meth:`drain`; on the event loop's thread unless stated otherwise.

    The first worker starts alone, so that compiled models are in the cache for the others. ``on_complete`` is called
    when all serve for the first time. A worker that does not report in is replaced. With ``watchdog`` (seconds), the
    one of systemd is fed while all workers report in.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        notifier: NotifySender,
        *,
        watchdog: float | None,
        on_complete: Callable[[], None],
    ) -> None:
        self._workers = tuple(_Worker(spec, NotifySocket(spec.identity)) for spec in specs)
        self._notifier = notifier
        self._watchdog = watchdog
        # Half of systemd's, so that a hung worker is replaced before systemd ends all of them.
        self._max_silence = watchdog / 2 if watchdog is not None else _MAX_SILENCE
        self._on_complete = on_complete
        self._was_complete = False
        self._draining = False
        self._last_status = ""
        self._last_ping = 0.0
        self._last_check = time.monotonic()
        self._changed = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._unclean = False
        self._tasks: list[asyncio.Task[None]] = []
        self.replaced = 0

    # -- state; any thread may ask ------------------------------------------------

    @property
    def states(self) -> tuple[WorkerState, ...]:
        return tuple(worker.lifecycle.state for worker in self._workers)

    @property
    def ready(self) -> bool:
        """Whether enough workers serve."""
        return not self._draining and is_ready(len(self.serving), len(self._workers), self._was_complete)

    @property
    def serving(self) -> frozenset[int]:
        """The workers that serve and do not hang."""
        now = time.monotonic()
        return frozenset(w.spec.identity.index for w in self._workers if w.lifecycle.is_serving(now))

    @property
    def present(self) -> dict[tuple[int, int], WorkerIdentity]:
        """The running processes, by worker index and generation."""
        return {
            (w.spec.identity.index, w.lifecycle.generation): w.spec.identity
            for w in self._workers
            if w.lifecycle.state in ALIVE
        }

    @property
    def served(self) -> StatusLine | None:
        """Models that all workers serve; None before any has reported."""
        reported = [
            s for w in self._workers if w.lifecycle.state in SERVING and (s := StatusLine.read(w.status)) is not None
        ]
        if not reported:
            return None
        return StatusLine(*(how(getattr(s, name) for s in reported) for how, name in _MERGED_BY))

    # -- from start to end --------------------------------------------------------

    def start(self) -> None:
        """Called once, on the loop."""
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            loop.add_reader(worker.notify_socket.fileno(), self._on_notify, worker)
        self._tasks = [asyncio.create_task(self._keep_running()), asyncio.create_task(self._keep_reloading())]

    async def failed(self) -> int:
        """The exit status of a worker that could not be started at all, once there is one."""
        return await asyncio.shield(self._failed)

    def reload(self) -> None:
        """Reload all workers, one after the other; when called meanwhile, once more after that."""
        self._reload_wanted.set()

    async def drain(self, seconds: float) -> bool:
        """Drain and end all workers, killing those left after ``seconds`` and a grace period; False unless all ended
        cleanly."""
        self._draining = True
        for worker in self._workers:
            worker.lifecycle.apply(WorkerEvent.STOP, time.monotonic())
            if worker.process is not None and worker.lifecycle.state is WorkerState.ENDING:
                worker.process.request_stop()
        try:
            async with asyncio.timeout(seconds + _GRACE):
                await self._until(lambda: set(self.states) <= {WorkerState.ENDED})
        except TimeoutError:
            log.error("workers did not end in time", workers=[str(state.value) for state in self.states])
            self.kill()
            await self._until(lambda: set(self.states) <= {WorkerState.ENDED})
        for task in self._tasks:
            task.cancel()
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            loop.remove_reader(worker.notify_socket.fileno())
            worker.notify_socket.close()
        return not self._unclean

    def kill(self) -> None:
        """Kill all workers at once."""
        for worker in self._workers:
            if worker.process is not None and worker.lifecycle.state in ALIVE:
                worker.process.signal(signal.SIGKILL)

    # -- one worker -----------------------------------------------------------------

    def _spawn(self, worker: _Worker) -> None:
        loop, index = asyncio.get_running_loop(), worker.spec.identity.index
        if worker.lifecycle.generation:
            self.replaced += 1
        worker.lifecycle.apply(WorkerEvent.STARTED, time.monotonic())
        worker.status, worker.aborted = "", None

        def ended(status: int) -> None:
            # The loop may be closed already.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._ended, worker, status)

        spec = worker.spec
        watchdog = None if self._watchdog is None else self._max_silence
        worker.process = Process(spec, ended, watchdog=watchdog)
        log.info("worker started", worker=index, pid=worker.process.pid, cpus=_cpu_list(spec.cpus))
        self._wake()

    def _ended(self, worker: _Worker, status: int) -> None:
        # Read its last messages now, or they would count as its successor's.
        self._on_notify(worker)
        lifecycle, before = worker.lifecycle, worker.lifecycle.state
        if worker.process is not None:
            worker.process.request_stop()
        lifecycle.apply(WorkerEvent.DIED, time.monotonic())
        if lifecycle.state is WorkerState.ENDED:
            self._unclean = self._unclean or status != 0
            log.info("worker ended", worker=worker.spec.identity.index, status=status)
        else:
            rest = max(0.0, lifecycle.start_due - time.monotonic())
            log.error(
                "worker died",
                worker=worker.spec.identity.index,
                status=status,
                was=before.value,
                again_in=round(rest, 1),
            )
            if (
                lifecycle.generation == 1
                and before is WorkerState.STARTING
                and status in _NO_USE
                and not self._failed.done()
            ):
                self._failed.set_result(status)
        self._wake()

    def _on_notify(self, worker: _Worker) -> None:
        for message in worker.notify_socket.receive():
            now, lifecycle = time.monotonic(), worker.lifecycle
            worker.status = message.get("STATUS", worker.status)
            if "RELOADING" in message:
                lifecycle.apply(WorkerEvent.RELOADING, now)
            if "READY" in message:
                worker.reloads += lifecycle.state is WorkerState.RELOADING
                lifecycle.apply(WorkerEvent.READY, now)
            # While it loads as well: any message shows progress, except one that only says what it waits for.
            if set(message) != {"STATUS"}:
                lifecycle.last_heard = now
            if lifecycle.state is WorkerState.STARTING and not self._was_complete and "EXTEND_TIMEOUT_USEC" in message:
                self._notifier.extend(self._status_line(), _EXTENSION)
        self._wake()

    # -- all workers ----------------------------------------------------------------

    async def _keep_running(self) -> None:
        while True:
            try:
                self._check(time.monotonic())
            except Exception:
                # If this persists, the watchdog is not fed and systemd steps in.
                log.exception("worker supervision failed")
            changed = self._changed
            with suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_INTERVAL):
                    await changed.wait()

    def _check(self, now: float) -> None:
        late, self._last_check = now - self._last_check - _CHECK_INTERVAL, now
        if late > _CHECK_INTERVAL:
            # This process was held up, perhaps stopped together with the workers: that proves no silence.
            for worker in self._workers:
                worker.lifecycle.forgive(late)
        if self._draining:
            if all(worker.lifecycle.state in ALIVE | {WorkerState.ENDED} for worker in self._workers):
                self._notifier.alive()
            return
        if self._failed.done():
            return
        alone = self._workers[0].lifecycle.generation <= 1 and self._workers[0].lifecycle.state in (
            WorkerState.WAITING,
            WorkerState.STARTING,
        )
        for worker in self._workers[:1] if alone else self._workers:
            if worker.lifecycle.state is WorkerState.WAITING and worker.lifecycle.start_due <= now:
                self._spawn(worker)
        if not self._was_complete and set(self.states) <= SERVING:
            self._was_complete = True
            self._last_status = self._status_line()
            self._notifier.ready(self._last_status)
            self._on_complete()
        silent = [worker for worker in self._workers if self._silent(worker, now)]
        for worker in silent:
            self._abort(worker, now)
        if not self._was_complete:
            return
        if not silent and now - self._last_ping >= _CHECK_INTERVAL:
            self._last_ping = now
            self._notifier.alive()
        if (line := self._status_line()) != self._last_status:
            self._last_status = line
            self._notifier.status(line)

    def _silent(self, worker: _Worker, now: float) -> bool:
        starting = worker.lifecycle.state is WorkerState.STARTING and now - worker.lifecycle.last_heard > max(
            self._max_silence, _MAX_START_SILENCE
        )
        return starting or worker.lifecycle.is_silent(now, self._max_silence)

    def _abort(self, worker: _Worker, now: float) -> None:
        if worker.process is None:
            return
        if worker.aborted is None:
            worker.aborted = now
            log.error("silent worker aborted", worker=worker.spec.identity.index)
            worker.process.signal(signal.SIGABRT)
            # One that was stopped would not notice.
            worker.process.signal(signal.SIGCONT)
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
                self._last_status = self._status_line()
                self._notifier.ready(self._last_status)
            log.info("all workers reloaded")

    async def _reload(self, worker: _Worker) -> None:
        if worker.process is None or worker.lifecycle.state not in ALIVE or not worker.status:
            # A starting worker reads the new settings anyway, and without a handler the signal would kill it.
            return
        serves, before = worker.lifecycle.state in SERVING, (worker.lifecycle.generation, worker.reloads)
        worker.process.signal(signal.SIGHUP)
        if not serves:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_RELOAD):
                await self._until(
                    lambda: (
                        (worker.lifecycle.generation, worker.reloads) != before or worker.lifecycle.state not in SERVING
                    )
                )

    def _status_line(self) -> str:
        serving, wanted = sum(state in SERVING for state in self.states), len(self._workers)
        models = str(self.served) if self.served is not None else self._workers[0].status or "starting"
        return models if serving == wanted else f"{models}; {serving} of {wanted} workers"

    def _wake(self) -> None:
        """Wake the tasks that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()


_MERGED_BY: tuple[tuple[Callable[..., int], str], ...] = ((min, "serving"), (max, "wanted"), (max, "loading"))


def _cpu_list(cpus: frozenset[int]) -> str:
    """In the kernel's format, such as ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
