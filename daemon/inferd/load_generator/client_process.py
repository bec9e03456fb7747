"""A process that generates load, and its parent's side. Spawned, never forked: grpc does not survive a fork."""

import asyncio
import gc
import multiprocessing
import resource
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import numpy as np
import uvloop

from inferd.bench.load import Closed, Load
from inferd.bench.tally import LoadWindow, RequestTally
from inferd.errors import InferdError
from inferd.load_generator.generator import Generator
from inferd.rpc import load_channels
from inferd.security.client_credentials import ClientCredentials

_TICK = 0.25
_STOP_TIMEOUT = 5.0
_NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """What process ``part`` of ``parts`` sends, and to which server: ``requests`` in turn, each a serialised
    ModelInferRequest. ``deadline`` is in seconds."""

    target: str
    connections: int
    stream: bool
    deadline: float | None
    credentials: ClientCredentials
    requests: tuple[bytes, ...]
    part: int
    parts: int


@dataclass(frozen=True, slots=True)
class Task:
    """One step: ``load`` of all processes together, for ``warm_up`` and then ``seconds``. A response within
    ``objective`` seconds is in time; requests unanswered ``patience`` seconds after the window are given up."""

    load: Load
    warm_up: float
    seconds: float
    objective: float
    patience: float
    seed: int


@dataclass(frozen=True, slots=True)
class Begin:
    """Start at ``moment``, of time.monotonic_ns, which all processes of a machine share."""

    moment: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the window now, and drop requests that have not ended ``patience`` seconds later."""

    patience: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The process can begin."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The counts so far in this step."""

    succeeded: int
    failed: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The process can't go on."""

    problem: str


class ClientFailed(InferdError):
    """A client process failed or has ended."""


class ClientProcess:
    """The process as its parent sees it; use as a context. ``connection`` can be waited on."""

    def __init__(self, client: ClientSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, client), daemon=True)
        # A terminal sends SIGINT to the whole group; only the parent decides what happens to this process, from the
        # first moment on. Starting the tracker unblocks the signal, so the handler has to be set before.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self._process.join(_STOP_TIMEOUT)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def tell(self, message: Task | Begin | Stop) -> None:
        """Send ``message``. Raises ClientFailed if the process has ended."""
        try:
            self.connection.send(message)
        except OSError:
            raise self._gone() from None

    def hear(self) -> Ready | Tick | LoadWindow:
        """The next message. Raises ClientFailed if the process can't go on or has ended."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(said, Failed):
            raise ClientFailed(said.problem)
        message: Ready | Tick | LoadWindow = said
        return message

    def _gone(self) -> ClientFailed:
        self._process.join(_STOP_TIMEOUT)
        return ClientFailed(f"a client process ended (exit code {self._process.exitcode})")


# -- in the process ---------------------------------------------------------------


def _main(connection: Connection, client: ClientSpec) -> None:
    try:
        uvloop.run(_ClientLoop(connection, client).serve())
    except InferdError as error:
        with suppress(OSError):
            connection.send(Failed(str(error)))
    except OSError:
        pass  # the parent has ended


class _ClientLoop:
    """Answers each task with Ready, ticks and its window, until the connection closes."""

    def __init__(self, connection: Connection, client: ClientSpec) -> None:
        self._connection = connection
        self._client = client
        self._inbox: asyncio.Queue[Task | Begin | None] = asyncio.Queue()
        self._stop: Stop | None = None
        self._generator: Generator | None = None

    async def serve(self) -> None:
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._read)
        client = self._client
        async with load_channels.open_channels(
            client.target,
            client.connections,
            stream=client.stream,
            deadline=client.deadline,
            credentials=client.credentials,
        ) as channels:
            # Objects made so far stay: keep the collector from scanning them again and again.
            gc.freeze()
            while isinstance(task := await self._inbox.get(), Task):
                whole = task.warm_up + task.seconds
                due = _NOTHING if isinstance(task.load, Closed) else task.load.due(whole, task.seed)
                self._connection.send(Ready())
                if not isinstance(begin := await self._inbox.get(), Begin):
                    return
                mine = (begin.moment + due[client.part :: client.parts]).tolist()
                self._connection.send(await self._step(task, begin.moment, channels, mine))

    def _read(self) -> None:
        message: Task | Begin | Stop | None = None
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._stop = Stop(0.0)
        if isinstance(message, Stop):
            self._stop = message
        else:
            self._inbox.put_nowait(message)
        if self._stop is not None and self._generator is not None:
            self._generator.stop(self._stop.patience)

    async def _step(
        self, task: Task, begins: int, channels: list[load_channels.LoadChannel], due: list[int]
    ) -> LoadWindow:
        opens = begins + round(task.warm_up * 1e9)
        tally = RequestTally(opens, opens + round(task.seconds * 1e9), round(task.objective * 1e9))
        self._generator = Generator(channels, self._client.requests, tally)
        if self._stop is not None:
            self._generator.stop(self._stop.patience)
        opened = _cpu()

        def open_window() -> None:
            nonlocal opened
            opened = _cpu()

        wait = max(0.0, (opens - time.monotonic_ns()) / 1e9)
        opening = asyncio.get_running_loop().call_later(wait, open_window)
        ticking = asyncio.create_task(self._tick(tally))
        try:
            await asyncio.sleep(max(0.0, (begins - time.monotonic_ns()) / 1e9))
            if isinstance(task.load, Closed):
                await self._generator.closed(task.load.seats(self._client.part, self._client.parts))
            else:
                await self._generator.open(due)
            used = _cpu() - opened
            await self._generator.settle(task.patience)
        finally:
            opening.cancel()
            ticking.cancel()
            self._generator = None
        return tally.window(used)

    async def _tick(self, tally: RequestTally) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._connection.send(Tick(tally.succeeded, tally.failed))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
