"""Retries loads that failed for a reason outside the model, at growing intervals."""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from inferd.errors import InferdError, LoadInterrupted
from inferd.health.reload_backoff import ReloadBackoff, ReloadBackoffRules

log = structlog.get_logger("inferd.catalog")


class LoadRetries:
    """Calls ``again`` with a model's name, on the loop, until its load succeeds or fails for another reason. ``rules``
    give the waits: a few short ones, doubled each time, then long ones without end."""

    def __init__(self, again: Callable[[str], object], rules: ReloadBackoffRules | None = None) -> None:
        self._again = again
        self._rules = rules or ReloadBackoffRules()
        self._tries: dict[str, ReloadBackoff] = {}
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def ended(self, name: str, failures: Iterable[InferdError]) -> None:
        """A load of ``name`` has ended, with ``failures``."""
        self._stop(name)
        why = next((str(failure) for failure in failures if isinstance(failure, LoadInterrupted)), "")
        if not why or self._closed:
            self._tries.pop(name, None)
            return
        loop = asyncio.get_running_loop()
        tries = self._tries.setdefault(name, ReloadBackoff(self._rules))
        tries.tried(loop.time(), why)
        self._waiting[name] = loop.call_later(tries.delay, self._again, name)
        log.info("model load retry scheduled", model=name, seconds=tries.delay)

    def forget(self, name: str) -> None:
        """Stop retrying ``name``."""
        self._stop(name)
        self._tries.pop(name, None)

    def close(self) -> None:
        """Stop all retries. Harmless when called again."""
        self._closed = True
        for name in list(self._waiting):
            self.forget(name)

    def _stop(self, name: str) -> None:
        if (handle := self._waiting.pop(name, None)) is not None:
            handle.cancel()


def failure_text(error: InferdError) -> str:
    """The text shown to clients for a load that failed with ``error``."""
    return f"{error}; it will be retried" if isinstance(error, LoadInterrupted) else str(error)
