"""``inferd serve``: the daemon."""

import asyncio
import faulthandler
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress

import structlog
import uvloop

from inferd import logs
from inferd.app import App, Ending
from inferd.cli import exit_status
from inferd.config.daemon import Settings
from inferd.errors import InferdError


def serve(settings: Settings, read: Callable[[], Settings]) -> int:
    """Serve until a signal; 0 after a clean drain. ``read`` gives the settings anew, at a reload.

    Raises InferdError when start-up fails.
    """
    # A watchdog ends a process that hangs with SIGABRT: this has it say where each thread was.
    faulthandler.enable()
    logs.configure(settings.log_level, settings.log_format)
    # As many connections as the machine lets us have: the soft limit is 1024 for the sake of select(2), not used here.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            ending = runner.run(_serve(settings, read))
        except InferdError:
            raise
        except Exception:
            structlog.get_logger("inferd").exception("start-up failed")
            return exit_status.FAILED_START
        if ending.abrupt:
            # A compile can't be interrupted; waiting for it could outlast the supervisor's patience.
            with suppress(OSError):
                sys.stderr.flush()
            os._exit(0)
    return 0


async def _serve(settings: Settings, read: Callable[[], Settings]) -> Ending:
    return await App(settings, read).run()
