"""Health probes as data: how one ends, what that says of later ones, and which rule asked for it."""

from enum import Enum


class ProbeOutcome(Enum):
    """How a probe ended: answered well; answered with the model's error; or neither, as where there was no room
    in the queue, which says nothing of the model."""

    OK = "ok"
    FAILED = "failed"
    UNANSWERED = "unanswered"


class ProbeTrust(Enum):
    """What probes have told of a model version so far."""

    PROVING = "proving"
    TRUSTED = "trusted"
    UNTESTABLE = "untestable"


class ProbeReason(Enum):
    """Which rule asked for a probe."""

    READINESS = "readiness"
    LIVENESS = "liveness"


# A model that has never been able to run on synthetic input is not judged by it.
PROBE_TRUST: dict[tuple[ProbeTrust, ProbeOutcome], ProbeTrust] = {
    (ProbeTrust.PROVING, ProbeOutcome.OK): ProbeTrust.TRUSTED,
    (ProbeTrust.PROVING, ProbeOutcome.FAILED): ProbeTrust.UNTESTABLE,
    (ProbeTrust.PROVING, ProbeOutcome.UNANSWERED): ProbeTrust.PROVING,
    (ProbeTrust.TRUSTED, ProbeOutcome.OK): ProbeTrust.TRUSTED,
    (ProbeTrust.TRUSTED, ProbeOutcome.FAILED): ProbeTrust.TRUSTED,
    (ProbeTrust.TRUSTED, ProbeOutcome.UNANSWERED): ProbeTrust.TRUSTED,
}
