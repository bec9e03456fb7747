"""Weighted fairness between models that share a device.

Each model's runs use device time: their own as long as all fit on the device together, otherwise
each gets its share of the device. A model that has used more than its weight allows lets the
others catch up, as long as they want to run. No model is held back while the device has room or
no other model waits.
"""

from collections.abc import Callable

# How far, in nanoseconds of the whole device for a weight of 1, a model may run ahead of its turn.
LEAD = 20_000_000


class SharedDevice:
    """The models on one device and the time each has used."""

    def __init__(self) -> None:
        self._members: list[Share] = []
        # Whether there is more than one model.
        self.crowded = False
        self._load = 0.0
        self._now = 0
        # Device time that a unit of width has got so far: each share's own use is derived from it on demand.
        self.clock = 0.0

    def join(self, weight: float, width: float) -> "Share":
        """Add a model whose runs each use ``width`` of the device (1: all of it)."""
        share = Share(self, weight, width)
        self._members.append(share)
        self.crowded = len(self._members) > 1
        return share

    def leave(self, share: "Share") -> None:
        """Remove the model; its runs that have not ended count for no model."""
        self._members.remove(share)
        self.crowded = len(self._members) > 1
        self.changed(share, -share.runs, self._now)

    def may_start(self, share: "Share", now: int) -> bool:
        """Whether ``share`` may start one more run at ``now``."""
        if self._load + share.width <= 1:
            return True
        self._advance(now)
        rivals = [m.used for m in self._members if m.wants and m is not share]
        return not rivals or share.used <= min(rivals) + LEAD

    def woken(self, by: "Share", now: int) -> "list[Share]":
        """The shares, other than ``by``, that were held back and may start now."""
        return [m for m in self._members if m.held_back and m is not by and self.may_start(m, now)]

    def _advance(self, now: int) -> None:
        if now > self._now:
            self.clock += (now - self._now) / max(1.0, self._load)
            self._now = now

    def changed(self, share: "Share", runs: int, now: int) -> None:
        """``share`` has started ``runs`` runs, or ended them if negative."""
        self._advance(now)
        share.settle(self.clock, runs)
        self._load += runs * share.width

    def used_by_run(self, share: "Share", began: int, now: int) -> float:
        """The device time used by a run of ``share`` that began and has ended while nothing else changed."""
        self._advance(began)
        before = self.clock
        self._load += share.width
        self._advance(now)
        self._load -= share.width
        return (self.clock - before) * share.width

    def least_used(self, but: "Share", now: int) -> float:
        """What the least served of the other busy shares has used; meaningless if none is busy."""
        self._advance(now)
        return min((m.used for m in self._members if m is not but and (m.runs or m.wants)), default=0.0)


class Share:
    """One model's part of a device. ``held_back`` while it may not start a run that it wants to start;
    the shell sets ``wake``."""

    def __init__(self, device: SharedDevice, weight: float, width: float) -> None:
        self.width = width
        self.runs = 0
        self.wants = False
        self.held_back = False
        self.wake: Callable[[], None] = lambda: None
        self._device = device
        self._weight = weight
        self._used = 0.0
        self._seen = device.clock

    @property
    def used(self) -> float:
        """Device time used so far, divided by the weight."""
        return self._used + self.runs * self.width * (self._device.clock - self._seen) / self._weight

    def settle(self, clock: float, runs: int) -> None:
        """Record the use up to the device's ``clock``; ``runs`` more runs continue from then on."""
        if self.runs:
            self._used += self.runs * self.width * (clock - self._seen) / self._weight
        self._seen = clock
        self.runs += runs

    def want(self, wants: bool, now: int) -> None:
        """Requests wait that could start, or none does any more."""
        if wants and not self.wants and not self.runs:
            # A model that returns from idling starts level with the least served: idling earns no credit.
            self._used = max(self._used, self._device.least_used(self, now))
        self.wants = wants

    def may_start(self, now: int) -> bool:
        """Whether one more run may start at ``now``."""
        self.held_back = self._device.crowded and not self._device.may_start(self, now)
        return not self.held_back

    def started(self, now: int) -> None:
        """A run began."""
        self._device.changed(self, 1, now)

    def ended(self, now: int) -> None:
        """A run ended."""
        self._device.changed(self, -1, now)

    def record_inline(self, began: int, now: int) -> None:
        """A run began and has ended while nothing changed: :meth:`started` and :meth:`ended` as one, needed only while
        the device is :attr:`contended`. Otherwise there is nothing to compare."""
        self._used += self._device.used_by_run(self, began, now) / self._weight

    @property
    def contended(self) -> bool:
        """Whether other models are on the device."""
        return self._device.crowded

    def wake_others(self, now: int) -> None:
        """Make the shares that were held back and may start now look again."""
        if self._device.crowded:
            for share in self._device.woken(self, now):
                share.wake()

    def leave(self) -> None:
        """Remove the model."""
        self._device.leave(self)
