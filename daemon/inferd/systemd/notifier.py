"""The shell that tells systemd the daemon's state, from its phase and its models' health."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from inferd.health.liveness import LivenessRules
from inferd.lifecycle import Lifecycle, ModelState, Phase
from inferd.systemd.notify import NotifySender
from inferd.systemd.status_line import StatusLine

log = structlog.get_logger("inferd.systemd")

# How often a supervisor hears from the daemon, in seconds, unless its watchdog wants that sooner.
_LOOK = 1.0
# How much more start-up time each message asks for: several looks, so that a late one does no harm.
_EXTENSION = 60.0


class SystemdNotifier:
    """Tells systemd the daemon's state from :meth:`start` to :meth:`stop`; all on the event loop's thread.

    While models load and the event loop runs, start-up time is extended again and again. From :meth:`ready` on, the
    watchdog is fed while no model that has work is silent. Does nothing if no supervisor listens. ``liveness`` are the
    watchdog's rules, None if there is no watchdog.

    ``wanted`` gives the states of the model versions that should answer, ``silent`` those that have owed an answer for
    too long, and for how many seconds.
    """

    def __init__(
        self,
        sender: NotifySender,
        lifecycle: Lifecycle,
        liveness: LivenessRules | None,
        *,
        wanted: Callable[[], Iterable[ModelState]],
        silent: Callable[[], Mapping[str, float]],
    ) -> None:
        self._sender = sender
        self._lifecycle = lifecycle
        self._interval = min(liveness.look, _LOOK) if liveness is not None else _LOOK
        self._wanted = wanted
        self._silent = silent
        self._looking: asyncio.Task[None] | None = None
        self._status_text = ""

    def start(self) -> None:
        """Called once, on the loop."""
        if self._sender.enabled:
            self._looking = asyncio.create_task(self._keep_looking())

    def ready(self) -> None:
        """Start-up or a reload has finished."""
        self._status_text = self._status()
        self._sender.ready(self._status_text)

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        self._sender.reloading()

    def stopping(self, seconds: float) -> None:
        """The drain begins and may take so many seconds; for the watchdog only the event loop counts from now on."""
        self._sender.stopping("draining", seconds)

    def stop(self) -> None:
        """Stop. Harmless when called again."""
        if self._looking is not None:
            self._looking.cancel()

    async def _keep_looking(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                # If the failure lasts, systemd notices the missing watchdog messages.
                log.exception("watchdog not fed")
            await asyncio.sleep(self._interval)

    def _look(self) -> None:
        phase = self._lifecycle.phase
        if phase is Phase.STARTING:
            self._sender.extend(self._status(), _EXTENSION)
        if phase is Phase.DRAINING:
            self._sender.alive()
        if phase is not Phase.READY:
            return
        silent = self._silent()
        if not silent:
            self._sender.alive()
        if (status := self._status(silent)) != self._status_text:
            self._status_text = status
            self._sender.status(status)

    def _status(self, silent: Mapping[str, float] | None = None) -> str:
        if silent:
            return "not alive: no answer from " + ", ".join(f"{m} for {s:.0f} s" for m, s in sorted(silent.items()))
        return str(StatusLine.of(self._wanted()))
