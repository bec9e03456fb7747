"""``inferd serve``: the daemon."""

import asyncio
import os
import sys

import structlog
import uvloop

from inferd import logs
from inferd.app import App, Ending
from inferd.cli import exit_status
from inferd.config.daemon import Settings
from inferd.errors import InferdError


def serve(settings: Settings) -> int:
    """Serve until a signal; 0 after a clean drain. Raises InferdError when start-up fails."""
    logs.configure(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            ending = runner.run(_serve(settings))
        except InferdError:
            raise
        except Exception:
            structlog.get_logger("inferd").exception("start-up failed")
            return exit_status.FAILED_START
        if ending.abrupt:
            # A compile can't be interrupted; waiting for it could outlast the supervisor's patience.
            sys.stderr.flush()
            os._exit(0)
    return 0


async def _serve(settings: Settings) -> Ending:
    return await App(settings).run()
