"""Turns a dispatcher's counts into an observation for the health tracker."""

from inferd.dispatcher import Dispatcher
from inferd.health.health import HealthObservation


def observed(dispatcher: Dispatcher) -> HealthObservation:
    """The present observation of the version that ``dispatcher`` runs."""
    stats = dispatcher.device_stats
    return HealthObservation(
        well=sum(c.succeeded for c in stats),
        failed=sum(c.failed for c in stats),
        hung=sum(c.hung for c in stats),
        busy=not dispatcher.scheduler.idle,
        run=dispatcher.scheduler.service_time / 1e9,
        gone="; ".join(f"{c.device}: {c.lost}" for c in stats) if all(c.lost for c in stats) else "",
        hangs=any(c.wedged and c.wedged == c.lost for c in stats),
        lost="; ".join(f"{c.device} is disabled: {c.lost}" for c in stats if c.lost),
        stalled=dispatcher.stalled,
    )
