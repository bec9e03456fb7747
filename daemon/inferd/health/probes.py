"""Health probes as data: their outcomes, what those say about later probes, and which rule asked for a probe."""

from enum import Enum


class ProbeOutcome(Enum):
    """How a probe ended: it succeeded, failed with the model's error, or neither, such as when the queue had no room,
    which says nothing about the model."""

    OK = "ok"
    FAILED = "failed"
    UNANSWERED = "unanswered"


class ProbeTrust(Enum):
    """What probes have shown about a model version so far."""

    PROVING = "proving"
    TRUSTED = "trusted"
    UNTESTABLE = "untestable"


class ProbeReason(Enum):
    """Which rule asked for a probe."""

    READINESS = "readiness"
    LIVENESS = "liveness"


# A model that has never run on synthetic input is not judged by it.
PROBE_TRUST: dict[tuple[ProbeTrust, ProbeOutcome], ProbeTrust] = {
    (ProbeTrust.PROVING, ProbeOutcome.OK): ProbeTrust.TRUSTED,
    (ProbeTrust.PROVING, ProbeOutcome.FAILED): ProbeTrust.UNTESTABLE,
    (ProbeTrust.PROVING, ProbeOutcome.UNANSWERED): ProbeTrust.PROVING,
    (ProbeTrust.TRUSTED, ProbeOutcome.OK): ProbeTrust.TRUSTED,
    (ProbeTrust.TRUSTED, ProbeOutcome.FAILED): ProbeTrust.TRUSTED,
    (ProbeTrust.TRUSTED, ProbeOutcome.UNANSWERED): ProbeTrust.TRUSTED,
}
