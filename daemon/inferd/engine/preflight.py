"""Model files are not trusted: a child process tries each one before this process reads it.

A file can crash its reader, ask for any amount of memory or compile for hours (OpenVINO facts 33
and 34). So a child process, under limits, reads, compiles and warms it up first, with the code that
serves it, and leaves the compiled blob in the cache. Its result is one sentence. This protects from
accidents and from a hostile file that crashes its reader. It is no sandbox: a file that takes over
the child could still write to the cache.
"""

import errno
import hashlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import structlog

from inferd.cgroup import memory
from inferd.config.daemon import Settings
from inferd.engine.cache import BlobCache
from inferd.engine.child_environment import child_environment
from inferd.engine.cpu_budget import cpu_threads
from inferd.engine.source import ModelSource
from inferd.errors import ConfigurationError, InferdError, LoadFailed, LoadInterrupted, one_line

log = structlog.get_logger("inferd.engine")

COMMAND = (sys.executable, "-P", "-m", "inferd.engine.preflight_process")

# The limit on the child's output, which the file may control: a real answer is a few hundred bytes.
_MOST_SAID = 64 << 10
_MOST_SHOWN = 2000

# Signals from outside that say nothing about the model; none of the child's limits sends them.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
# Errors that mean no child can be started for now.
_SHORT_OF = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class PreflightLimits:
    """The child's limits: bytes of private memory, seconds of wall-clock time, CPU threads; ``nice`` is added to its
    niceness."""

    memory_bytes: int
    seconds: float
    cpu_threads: int
    nice: int = 10

    @classmethod
    def of(cls, settings: Settings) -> "PreflightLimits":
        """The limits that ``settings`` configure."""
        return cls(memory_allowed(settings.preflight_memory_bytes), settings.preflight_timeout, cpu_threads(settings))


@dataclass(frozen=True, slots=True)
class PreflightJob:
    """A child's task: try ``source``, and compile it into the cache at ``cache``. It ends with its ``parent``."""

    source: ModelSource
    cache: Path
    cache_bytes: int
    limits: PreflightLimits
    parent: int


class Preflight:
    """Tries model versions in child processes. Safe to call from several threads; each has a child of its own.

    ``command`` runs a child: it gets a pickled :class:`PreflightJob` on standard input and answers with one JSON
    object.
    """

    def __init__(self, cache: BlobCache, limits: PreflightLimits, command: Sequence[str] = COMMAND) -> None:
        self._cache = cache
        self._limits = limits
        self._command = command
        self._lock = Lock()
        self._closed = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._passed: set[str] = set()

    def check_open(self, source: ModelSource) -> None:
        """Raises LoadFailed once :meth:`close` was called."""
        with self._lock:
            if self._closed:
                raise _stopped(source)

    def check(self, source: ModelSource, keys: Sequence[str]) -> None:
        """Try ``source``, unless one with the same ``keys`` has passed; they identify its content and settings on each
        of its devices. Raises LoadFailed or ConfigurationError with the problem, and LoadInterrupted if that is
        unknown.

        A cached blob proves nothing: the child that left it may have crashed at the first run.
        """
        key = _key(source, keys)
        with self._lock:
            passed = key in self._passed
        if not passed and not self._cache.marked(key):
            self.run(source)
            self._cache.mark(key)
        with self._lock:
            self._passed.add(key)

    def close(self) -> None:
        """End the children. Loads that wait for one raise LoadFailed, and so do later loads. Harmless when called
        again."""
        with self._lock:
            self._closed = True
            for child in self._running:
                child.kill()

    def run(self, source: ModelSource) -> None:
        """Try ``source`` now, even if it has passed before, and don't record the result. Raises like :meth:`check`."""
        begun = time.monotonic()
        child = self._start(source)
        try:
            said, noise, timed_out = _communicate(child, self._job(source), begun + self._limits.seconds)
        finally:
            child.kill()
            child.wait()
            with self._lock:
                self._running.discard(child)
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        self.check_open(source)
        problem = f"it took longer than {self._limits.seconds:g} s (preflight_timeout)" if timed_out else None
        error = LoadFailed(source.name, source.version, problem) if problem else self._verdict(source, child, said)
        seconds = round(time.monotonic() - begun, 3)
        if error is not None:
            # The caller logs the failed load; this adds the child's last output.
            log.info("preflight failed", model=source.name, version=source.version, seconds=seconds, said=_shown(noise))
            raise error
        log.info("preflight passed", model=source.name, version=source.version, seconds=seconds)

    def _start(self, source: ModelSource) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._closed:
                raise _stopped(source)
            try:
                child = subprocess.Popen(  # noqa: S603 - the command is ours
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=child_environment(os.environ),
                    # Signals to our process group, from a terminal or timeout(1), are for the parent to handle.
                    process_group=0,
                )
            except OSError as error:
                problem = f"the preflight process could not be started: {error.strerror}"
                kind = LoadInterrupted if error.errno in _SHORT_OF else LoadFailed
                raise kind(source.name, source.version, problem) from error
            self._running.add(child)
            return child

    def _job(self, source: ModelSource) -> bytes:
        return pickle.dumps(
            PreflightJob(source, self._cache.directory, self._cache.max_bytes, self._limits, os.getpid())
        )

    def _verdict(self, source: ModelSource, child: "subprocess.Popen[bytes]", said: bytes) -> InferdError | None:
        answer = _parsed(said) if child.returncode == 0 else {}
        text = {name: one_line(str(value), 1000) for name, value in answer.items()}
        match text.get("verdict"):
            case "passed":
                return None
            case "refused":
                return LoadFailed(source.name, source.version, text.get("problem", ""))
            case "misconfigured":
                return ConfigurationError(
                    f"{source.name}/model.toml",
                    text.get("key", ""),
                    text.get("problem", ""),
                    allowed=text.get("allowed", ""),
                )
            case "memory":
                problem = f"it needs more memory than the {self._limits.memory_bytes} bytes of preflight_memory_bytes"
            case _:
                problem = f"the preflight process {_ending(child.returncode)}"
                if -child.returncode in _FROM_OUTSIDE:
                    return LoadInterrupted(source.name, source.version, problem)
        return LoadFailed(source.name, source.version, problem)


def memory_allowed(setting: int, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a child may use: ``setting``, or for 0 half of what this process may use, by cgroup and machine."""
    return setting or memory(proc, cgroup) // 2


def _key(source: ModelSource, keys: Sequence[str]) -> str:
    shapes = repr(sorted(source.config.warmup.shapes.items()))
    return hashlib.sha256(json.dumps([*keys, shapes]).encode()).hexdigest()


def _communicate(child: "subprocess.Popen[bytes]", job: bytes, until: float) -> tuple[bytes, bytes, bool]:
    """Its answer and the end of its error output; True if it had not ended by ``until`` on the monotonic clock."""
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise AssertionError("it was started with pipes")
    with suppress(OSError):
        # A child that has ended reads nothing; its exit status says more than this error.
        child.stdin.write(job)
        child.stdin.close()
    said = noise = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready or time.monotonic() > until:
                return b"", noise, True
            for at, _ in ready:
                chunk = os.read(at.fd, 1 << 16)
                if not chunk:
                    selector.unregister(at.fileobj)
                elif at.fileobj is child.stdout:
                    said = (said + chunk)[:_MOST_SAID]
                else:
                    noise = (noise + chunk)[-_MOST_SHOWN:]
    try:
        child.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return b"", noise, True
    return said, noise, False


def _parsed(said: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(said)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _ending(status: int) -> str:
    """How a process with that exit status ended, as the end of a sentence."""
    if status >= 0:
        return f"ended with status {status} and no result"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    match name:
        case "SIGKILL":
            return "was killed (SIGKILL), possibly because memory ran out"
        case "SIGTERM" | "SIGHUP" | "SIGINT" | "SIGQUIT":
            return f"was terminated ({name})"
        case "SIGXCPU":
            return "used more CPU time than preflight_timeout allows"
        case _:
            return f"crashed ({name})"


def _shown(noise: bytes) -> str:
    return one_line(noise.decode(errors="replace").strip(), _MOST_SHOWN)


def _stopped(source: ModelSource) -> LoadFailed:
    return LoadFailed(source.name, source.version, "loading stopped: the server is shutting down")
