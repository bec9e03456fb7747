"""A probe in its own process: a candidate that crashes or hangs affects nothing else.

Started as a new program because OpenVINO does not survive a fork (OpenVINO fact 16).
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from inferd import logs
from inferd.axes import Value
from inferd.engine.cache import BlobCache
from inferd.engine.child_environment import child_environment
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, LoadFailed
from inferd.tensors import Tensor
from inferd.tuner.configure import Seeds
from inferd.tuner.plan import hints_of
from inferd.tuner.probe import Probe
from inferd.tuning.candidates import Candidate
from inferd.tuning.measurement import Measurement, MeasurementWindow

COMMAND = (sys.executable, "-P", "-m", "inferd.tuner.probe_child")

# Longer than any measurement: loading the largest models takes minutes.
_HUNG = 900.0
# Length of one measurement window.
WINDOW_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """What to measure: ``source`` on its only device, compiled into the cache at ``cache``.

    ``nice`` is added to the process's niceness, so that clients go first. ``companions`` are kept
    under load meanwhile.
    """

    source: ModelSource
    cache: Path
    cache_bytes: int
    cpu_threads: int
    window_seconds: float
    nice: int = 0
    samples: Sequence[Sequence[Tensor]] = ()
    companions: Sequence[ModelSource] = ()


class ProbeProcess:
    """Runs probes for ``job`` in child processes; use as a context manager.

    There is one process per thread placement: within a process, OpenVINO hands the threads of a freed
    model to the next one, and they stay on their CPUs even if the new model asks for others (OpenVINO fact 30).
    Only one process works at a time.
    """

    def __init__(self, job: ProbeJob) -> None:
        self._job = job
        self._lock = Lock()
        self._killed = False
        self._children: dict[tuple[Value, ...] | None, _ProbeChild] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, even during a measurement. Harmless when called again."""
        with self._lock:
            children, self._children = list(self._children.values()), {}
        for child in children:
            child.close()

    def kill(self) -> None:
        """End the processes, from another thread than the one that waits for an answer. That query and all later ones
        fail."""
        with self._lock:
            self._killed = True
            for child in self._children.values():
                child.kill()

    def hints(self) -> Seeds:
        """Like :func:`hints_of`. Raises InferdError."""
        answer = self._answered(None, None)
        if not isinstance(answer, Seeds):
            raise LoadFailed(self._job.source.name, self._job.source.version, str(answer))
        return answer

    def measure(self, candidate: Candidate, windows: int) -> Measurement:
        """Like :meth:`Probe.measure`. If the process dies or hangs, the candidate fails and the process is replaced."""
        answer = self._answered(candidate, (candidate, windows))
        if isinstance(answer, Measurement):
            return answer
        return Measurement(candidate, candidate, (), 0.0, str(answer))

    def arrive(self, candidate: Candidate, rate: float, seconds: float) -> MeasurementWindow | None:
        """Like :meth:`Probe.arrive`; None if the candidate could not run."""
        answer = self._answered(candidate, (candidate, rate, seconds))
        return answer if isinstance(answer, MeasurementWindow) else None

    def _answered(self, candidate: Candidate | None, question: object) -> object:
        """The answer to ``question``, or a text that says why there is none."""
        placement = placement_of(candidate)
        try:
            with self._lock:
                if self._killed:
                    return "measuring was stopped"
                child = self._children.get(placement)
                if child is None:
                    child = self._children[placement] = _ProbeChild(self._job)
            return child.ask(question)
        except _ChildLost as gone:
            with self._lock:
                lost = self._children.pop(placement, None)
            if lost is not None:
                lost.close()
            return str(gone)


def placement_of(candidate: Candidate | None) -> tuple[Value, ...] | None:
    """The settings that determine thread placement; None for the hints, which have no candidate."""
    return None if candidate is None else candidate.placement


class _ChildLost(Exception):
    """The process ended or hangs."""


class _ProbeChild:
    """One child process, started on construction."""

    def __init__(self, job: ProbeJob) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                [*COMMAND, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=child_environment(os.environ),
            )
        # If the child has ended already, the first query reports it.
        with suppress(OSError):
            self._pipe.send(job)

    def ask(self, question: object) -> object:
        """Raises _ChildLost if no answer comes."""
        try:
            self._pipe.send(question)
            if not self._pipe.poll(_HUNG):
                raise _ChildLost(f"it did not respond for {_HUNG:.0f} s")
            return self._pipe.recv()
        except (EOFError, OSError):
            raise _ChildLost("its process ended") from None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()


def serve(pipe: Connection, job: ProbeJob) -> None:
    """The child's side: answer queries until the pipe closes."""
    # A terminal signals the whole process group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(job.nice)
    logs.configure("error", "auto")
    engine = Engine(job.cpu_threads, BlobCache(job.cache, job.cache_bytes))
    with Probe(engine, job.source, job.window_seconds, samples=job.samples, companions=job.companions) as probe:
        while True:
            try:
                question = pipe.recv()
            except EOFError:
                return
            pipe.send(_answer(engine, job, probe, question))


def _answer(engine: Engine, job: ProbeJob, probe: Probe, question: tuple[Any, ...] | None) -> object:
    try:
        match question:
            case None:
                return hints_of(engine, job.source)
            case (candidate, windows):
                return probe.measure(candidate, windows)
            case (candidate, rate, seconds):
                return probe.arrive(candidate, rate, seconds)
    except LoadFailed as error:
        # The caller adds the model's name.
        return error.problem
    except InferdError as error:
        return str(error)
    raise AssertionError(question)
