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

# Messages of OpenVINO, the C++ library and numpy about a failed allocation.
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "unable to allocate", "cannot allocate memory")


def main() -> None:
    """Confine this process, then try the job's model."""
    job = pickle.load(sys.stdin.buffer)  # noqa: S301 - our parent wrote it
    if not isinstance(job, PreflightJob):
        raise AssertionError("our parent sends nothing else")
    confine(job)
    # Output of a library must not pass for an answer.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        # OpenVINO's messages in full, for the parent's log.
        logs.configure("warning", "auto")
        json.dump(verdict(job), answers)
    # Exit at once, so that no library's exit handler changes the result.
    os._exit(0)


def confine(job: PreflightJob) -> None:
    """Set this process's limits, permanently. Exits if its parent has gone already."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != job.parent:
            os._exit(1)
    with suppress(OSError):
        # If the machine runs out of memory, the kernel kills this process first.
        Path("/proc/self/oom_score_adj").write_text("1000")
    limits = job.limits
    os.nice(limits.nice)
    # RLIMIT_DATA rather than RLIMIT_AS: weights mapped from the file and the address space that the C library
    # reserves for each thread use no memory yet (OpenVINO fact 34).
    _limit(resource.RLIMIT_DATA, limits.memory_bytes)
    # The parent's timeout comes first; this limit applies if the parent can't act.
    seconds = math.ceil(limits.seconds * (limits.cpu_threads + 1))
    # With a higher hard limit the process ends with SIGXCPU; with equal ones, with SIGKILL, which is ambiguous.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 5)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _MOST_FILES)
    _limit(resource.RLIMIT_FSIZE, job.cache_bytes)


def verdict(job: PreflightJob) -> dict[str, str]:
    """The result of loading the model as the daemon would."""
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
    """``source`` with a single warm-up run: a second one proves nothing more."""
    warmup = source.config.warmup
    shorter = warmup.model_copy(update={"runs": min(warmup.runs, 1)})
    return replace(source, config=source.config.model_copy(update={"warmup": shorter}))


def _limit(which: int, most: int, hardest: int | None = None) -> None:
    """Lower a limit, and the hard limit with it to make it permanent; never raises a limit."""
    _, hard = resource.getrlimit(which)
    hardest = hardest or most
    if hard != resource.RLIM_INFINITY:
        most, hardest = min(most, hard), min(hardest, hard)
    resource.setrlimit(which, (most, hardest))


if __name__ == "__main__":
    main()
