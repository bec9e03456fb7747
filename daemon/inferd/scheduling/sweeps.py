"""How soon to look at runs in flight: a failed or cancelled run ends without notice."""

LONGEST = 20_000_000
# After a cancel the device takes the time of one kernel, mostly well under a millisecond (OpenVINO fact 40).
_SHORTEST = 250_000
# After a failure, the next failed run must not hold its slot for long.
_ALERT, _ALERT_FOR = 1_000_000, 1_000_000_000


class Sweeps:
    """``ns`` is the time until the next look, in nanoseconds: short after a cancel, doubling from look to look."""

    def __init__(self) -> None:
        self.ns = LONGEST
        self._alert_until = 0

    def soon(self) -> None:
        """A run was cancelled."""
        self.ns = _SHORTEST

    def failed(self, now: int) -> None:
        """A run has failed."""
        self._alert_until = now + _ALERT_FOR
        self.ns = min(self.ns, _ALERT)

    def looked(self, now: int) -> None:
        """A look took place at ``now``."""
        if self.ns < LONGEST:
            self.ns = min(2 * self.ns, _ALERT if now < self._alert_until else LONGEST)
