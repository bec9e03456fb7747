"""A worker's side of the pipe from its supervisor. No data comes through it; it closes when the supervisor wants the
worker to drain, or is gone."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from inferd.workers.worker_identity import WorkerIdentity

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.05


def watch_supervisor(identity: WorkerIdentity, let_go: Callable[[], object]) -> None:
    """Call ``let_go`` once the pipe has closed, on a thread of its own, as the event loop may hang.

    A supervisor that is gone leaves no sockets behind, and no worker that is stopped.
    """
    if sys.platform == "linux":
        # One that is stopped would notice nothing, and keep its part of the port's connections for ever.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        # The event loop may be closed already.
        with suppress(RuntimeError):
            let_go()
        # A supervisor's pipes close before it has ended, and one that is draining may still be killed.
        while not identity.orphaned:
            time.sleep(_LOOK_SECONDS)
        identity.clean_up()

    threading.Thread(target=wait, name="supervisor pipe", daemon=True).start()
