"""The child of a preflight: ``python -m inferd.engine.preflight_process``, a pickled PreflightJob on standard input.

Answers with one JSON object on standard output: ``verdict`` is passed, refused (``problem``),
misconfigured (``key``, ``problem``, ``allowed``) or memory. Only our own parent feeds it.
"""

import ctypes
import json
import math
import os
import pickle
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from inferd import logs
from inferd.engine.cache import BlobCache
from inferd.engine.model import Engine
from inferd.engine.preflight import PreflightJob
from inferd.engine.source import ModelSource
from inferd.errors import ConfigurationError, InferdError, LoadFailed

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

_MOST_FILES = 256

# What OpenVINO, the C++ library and numpy say where an allocation fails.
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "unable to allocate", "cannot allocate memory")


def main() -> None:
    """Confine this process, then try what the job names."""
    job = pickle.load(sys.stdin.buffer)  # noqa: S301 - our parent wrote it
    if not isinstance(job, PreflightJob):
        raise AssertionError("our parent sends nothing else")
    confine(job)
    # What a library prints must not pass for an answer.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        # What OpenVINO says in full, for our parent to log.
        logs.configure("warning", "auto")
        json.dump(verdict(job), answers)
    # Nothing that a library does at the end of the interpreter changes the verdict.
    os._exit(0)


def confine(job: PreflightJob) -> None:
    """Set this process's limits, for good. Ends it where its parent has gone already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != job.parent:
            os._exit(1)
    with suppress(OSError):
        # Where memory runs out although each is within its limit, it is this process that goes.
        Path("/proc/self/oom_score_adj").write_text("1000")
    limits = job.limits
    os.nice(limits.nice)
    # RLIMIT_DATA and not RLIMIT_AS: weights that are mapped from the file and the address space that
    # the C library reserves for each thread are no memory yet (fact 34).
    _limit(resource.RLIMIT_DATA, limits.memory_bytes)
    # The parent's clock comes first; this is for when the parent can't act.
    seconds = math.ceil(limits.seconds * (limits.cpu_threads + 1))
    # Of its own, that ends it with SIGXCPU; where both are one, with SIGKILL, which says nothing.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 5)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _MOST_FILES)
    _limit(resource.RLIMIT_FSIZE, job.cache_bytes)


def verdict(job: PreflightJob) -> dict[str, str]:
    """What loading it, as the daemon would, came to."""
    engine = Engine(job.limits.cpu_threads, BlobCache(job.cache, job.cache_bytes), maps=True)
    try:
        engine.load(_tried(job.source)).close()
    except MemoryError:
        return {"verdict": "memory"}
    except ConfigurationError as error:
        return {"verdict": "misconfigured", "key": error.key, "problem": error.problem, "allowed": error.allowed}
    except InferdError as error:
        if any(phrase in str(error).lower() for phrase in _NO_MEMORY):
            return {"verdict": "memory"}
        return {"verdict": "refused", "problem": error.problem if isinstance(error, LoadFailed) else str(error)}
    return {"verdict": "passed"}


def _tried(source: ModelSource) -> ModelSource:
    """``source`` with a warm-up of one run: a second proves nothing more."""
    warmup = source.config.warmup
    shorter = warmup.model_copy(update={"runs": min(warmup.runs, 1)})
    return replace(source, config=source.config.model_copy(update={"warmup": shorter}))


def _limit(which: int, most: int, hardest: int | None = None) -> None:
    """Lower a limit, and the hard one with it so that it stays; one that is lower already stays as it is."""
    _, hard = resource.getrlimit(which)
    hardest = hardest or most
    if hard != resource.RLIM_INFINITY:
        most, hardest = min(most, hard), min(hardest, hard)
    resource.setrlimit(which, (most, hardest))


if __name__ == "__main__":
    main()
