"""The shell around :mod:`inferd.health.liveness`: looks at the models, sends probes, tells systemd."""

import asyncio
import time
from collections.abc import Mapping

import structlog

from inferd.catalog.catalog import Catalog
from inferd.deployment.deployment import Deployment
from inferd.dispatcher import Dispatcher
from inferd.health.liveness import Liveness, LivenessRules, ModelActivity, ProbeOutcome
from inferd.lifecycle import Lifecycle, ModelState, Phase
from inferd.supervision import probe
from inferd.systemd.notify import NotifySender
from inferd.systemd.status_line import StatusLine

log = structlog.get_logger("inferd.systemd")

# How often systemd hears from a daemon whose unit has no watchdog, in seconds.
_LOOK = 5.0
# How much longer start-up may take each time that is said: several looks, so that one that comes late does no harm.
_EXTENSION = 60.0
# A probe that has no answer after so many times the limit is let go; the model has long been called silent.
_GIVEN_UP = 3.0


# Whether it ails decides what is expected of it.
_Key = tuple[Dispatcher, bool]


class SystemdNotifier:
    """Tells whoever started the daemon how it is, from :meth:`start` to :meth:`stop`; all on the event loop's thread.

    While models load, start-up is given more time again and again, as long as the event loop runs. From
    :meth:`ready` on the watchdog is fed, but only while no model is silent that has something to do. Nothing of
    this is done where nobody listens, and without ``watchdog`` (seconds) no model is tried.
    """

    def __init__(self, notifier: NotifySender, watchdog: float | None, catalog: Catalog, lifecycle: Lifecycle) -> None:
        self._notifier = notifier
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._rules = LivenessRules.within(watchdog) if watchdog is not None else None
        self._liveness: Liveness[_Key] | None = Liveness(self._rules) if self._rules is not None else None
        self._looking: asyncio.Task[None] | None = None
        self._probes: set[asyncio.Task[None]] = set()
        self._silent: frozenset[_Key] = frozenset()
        self._status_text = ""

    def start(self) -> None:
        """Called once, on the loop."""
        if self._notifier.enabled:
            self._looking = asyncio.create_task(self._keep_looking())

    def ready(self) -> None:
        """Start-up, or a reload, is through."""
        self._status_text = self._status()
        self._notifier.ready(self._status_text)

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        self._notifier.reloading()

    def stopping(self, seconds: float) -> None:
        """The drain begins and may take so many seconds; for the watchdog only the event loop counts from now on."""
        self._notifier.stopping("draining", seconds)

    def stop(self) -> None:
        """Look no more. Harmless when called again."""
        for task in (self._looking, *self._probes):
            if task is not None:
                task.cancel()

    async def _keep_looking(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                # Not to be fed for long is what makes this heard of.
                log.exception("the watchdog could not be fed")
            await asyncio.sleep(self._rules.look if self._rules is not None else _LOOK)

    def _look(self) -> None:
        phase = self._lifecycle.phase
        if phase is Phase.STARTING:
            self._notifier.extend(self._status(), _EXTENSION)
        if phase is Phase.DRAINING:
            self._notifier.alive()
        if phase is not Phase.READY:
            return
        silent = self._judge()
        if not silent:
            self._notifier.alive()
        if (status := self._status(silent)) != self._status_text:
            self._status_text = status
            self._notifier.status(status)

    def _judge(self) -> dict[str, float]:
        """Send the probes that are due; the models that are silent, and for how many seconds."""
        if self._liveness is None:
            return {}
        present = {
            (deployment.dispatcher, bool(model_version.unready_reason)): deployment
            for model_version, deployment in self._catalog.loaded()
            # One that is known to fail has been taken out of service, and a device that is lost is seen to elsewhere;
            # one that hangs beyond that needs a new process.
            if model_version.state is ModelState.READY
            and (
                not model_version.unready_reason or (_busy(deployment.dispatcher) and not _lost(deployment.dispatcher))
            )
        }
        report = self._liveness.look(time.monotonic(), {key: _activity(*key) for key in present})
        for key in report.to_probe:
            _, unready = key
            if unready:
                # It is being tried as it is.
                self._liveness.ended(key, ProbeOutcome.UNANSWERED)
                continue
            task = asyncio.create_task(self._try(self._liveness, key, present[key]))
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)
        silent = {_name(present[key]): seconds for key, seconds in report.silent.items()}
        self._report(report.silent, present)
        return silent

    def _report(self, silent: Mapping[_Key, float], present: Mapping[_Key, Deployment]) -> None:
        for key in silent.keys() - self._silent:
            log.error("model is silent; the watchdog is not fed", model=_name(present[key]), seconds=round(silent[key]))
        for key in self._silent - silent.keys():
            if key in present:
                log.info("model answers again", model=_name(present[key]))
        self._silent = frozenset(silent)

    async def _try(self, liveness: Liveness[_Key], key: _Key, deployment: Deployment) -> None:
        outcome = ProbeOutcome.UNANSWERED
        try:
            outcome = await probe.send(deployment, _GIVEN_UP * liveness.rules.limit)
        finally:
            liveness.ended(key, outcome)

    def _status(self, silent: Mapping[str, float] | None = None) -> str:
        if silent:
            return "not alive: no answer from " + ", ".join(f"{m} for {s:.0f} s" for m, s in sorted(silent.items()))
        return str(StatusLine.of(entry.state for entry in self._catalog.index() if entry.desired))


def _activity(dispatcher: Dispatcher, unready: bool) -> ModelActivity:
    # Who is out of service because it fails, and still tried, is alive as long as its runs end at all.
    failed = sum(stats.failed for stats in dispatcher.device_stats) if unready else 0
    return ModelActivity(dispatcher.completed + failed, _busy(dispatcher), dispatcher.scheduler.service_time / 1e9)


def _lost(dispatcher: Dispatcher) -> bool:
    """Whether no device of it is left, and not because it hangs there."""
    return all(stats.lost and stats.lost != stats.wedged for stats in dispatcher.device_stats)


def _busy(dispatcher: Dispatcher) -> bool:
    return not dispatcher.scheduler.idle


def _name(deployment: Deployment) -> str:
    return f"{deployment.source.name}/{deployment.source.version}"
