"""``inferd serve``: the daemon."""

import asyncio
import faulthandler
import os
import resource
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from inferd import logs
from inferd.cli import exit_status
from inferd.config.daemon import Settings
from inferd.errors import InferdError
from inferd.exit_deadline import GRACE_SECONDS, ExitDeadline
from inferd.log_writer import LAST_LINES, LogWriter
from inferd.workers.worker_identity import WorkerIdentity

if TYPE_CHECKING:
    from inferd.app import ExitOutcome


def serve(settings: Settings, read: Callable[[], Settings], argv: Sequence[str]) -> int:
    """Serve until a signal; 0 after a clean drain. ``read`` reads the settings again, for a reload. Several workers
    are started with ``argv``, the command line, and flags of their own.

    Raises InferdError when start-up fails.
    """
    # The watchdog ends a process that hangs with SIGABRT: then this prints where each thread was.
    faulthandler.enable()
    identity = WorkerIdentity.of(os.environ)
    log = LogWriter(sys.stderr.fileno())
    logs.configure(settings.log_level, settings.log_format, log, worker=None if identity is None else identity.index)
    # As many connections as the machine allows: the soft limit of 1024 is for select(2), which is not used here.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        if identity is None and settings.workers != 1:
            from inferd.workers.daemon import WORKERS_SECONDS, worker_count

            # Only the workers need OpenVINO and gRPC: their supervisor is small and starts at once.
            if (count := worker_count(settings)) > 1:
                # The workers end by themselves before, or are killed.
                deadline = _deadline(settings, log, later=WORKERS_SECONDS)
                return asyncio.run(_supervise(settings, argv, count, deadline))
        return _serve(settings, read, identity, _deadline(settings, log), log)
    except InferdError:
        raise
    except Exception:
        structlog.get_logger("inferd").exception("start-up failed")
        return exit_status.FAILED_START
    finally:
        log.drain(LAST_LINES)


def _deadline(settings: Settings, log: LogWriter, later: float = 0.0) -> ExitDeadline:
    return ExitDeadline(settings.drain_timeout + GRACE_SECONDS + later, exit_status.OVERDUE, log)


async def _supervise(settings: Settings, argv: Sequence[str], count: int, deadline: ExitDeadline) -> int:
    from inferd.workers.daemon import WorkersDaemon

    return await WorkersDaemon(settings, argv, count, deadline=deadline).run()


def _serve(
    settings: Settings,
    read: Callable[[], Settings],
    identity: WorkerIdentity | None,
    deadline: ExitDeadline,
    log: LogWriter,
) -> int:
    from inferd.app import App
    from inferd.transport.event_loop import QueueEventLoop

    async def run() -> "ExitOutcome":
        return await App(settings, read, identity, deadline=deadline, log_writer=log).run()

    with asyncio.Runner(loop_factory=QueueEventLoop) as runner:
        outcome = runner.run(run())
        status = exit_status.RESTART if outcome.restart else 0
        if outcome.abrupt:
            # A compile can't be interrupted, and waiting for it could outlast the supervisor's patience.
            log.drain(LAST_LINES)
            os._exit(status)
    return status
