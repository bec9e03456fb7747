"""Shares the requests of a model version between what serves it and a candidate."""

from inferd.deployment.deployment import Deployment


class TrafficSplit:
    """A ``candidate`` on trial next to the ``incumbent`` that serves; both take the same requests.

    :meth:`set_share` sets the candidate's share of the requests.
    """

    def __init__(self, incumbent: Deployment, candidate: Deployment) -> None:
        self.incumbent = incumbent
        self.candidate = candidate
        self._share = 0.0
        self._owed = 0.0

    def set_share(self, part: float) -> None:
        """Give the candidate ``part`` of the requests from now on, 0..1, evenly spread."""
        self._share = part

    def pick(self) -> Deployment:
        """The side that answers the next request."""
        self._owed += self._share
        if self._owed < 1:
            return self.incumbent
        self._owed -= 1
        return self.candidate
