"""Everything that can go wrong, as data.

An error carries fields and renders one sentence from them; it knows no transport.
``rpc/status.py`` maps each class to a gRPC code and ``outcome`` is the label under
which the metrics count it. Sentences name the model, the field, what was expected and
what came; they never contain a host path, except those an operator reads at the
console (:class:`ConfigurationError`, :class:`RepositoryError`).
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar, Self

# Clients can ask for unknown models at will: comparing a name with all others would cost milliseconds.
_MOST_COMPARED = 16
_LONGEST_COMPARED = 48


def one_line(text: str, limit: int = 300) -> str:
    """``text`` with control characters and line breaks flattened, cut at ``limit`` characters.

    Client-supplied names end up in messages and log lines; a newline in one must not
    be able to forge a second line.
    """
    # Cut before looking at each character: the text may be megabytes of a client's.
    flat = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def listed(names: Iterable[object], limit: int = 12) -> str:
    """``names`` as a readable list, "none" when empty, cut with a count when long."""
    items = [one_line(str(n), 80) for n in names]
    if not items:
        return "none"
    tail = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + tail


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """`` (did you mean grpc_bind?)`` where one of ``names`` looks like the misspelt ``word``; else empty. A ``prefix``
    that all begin with does not make them alike."""
    typed, known = word.removeprefix(prefix).lower(), {name.removeprefix(prefix).lower(): name for name in names}
    close = get_close_matches(typed, known, n=1)
    if not close and len(typed) > 2:
        # Also where the end is missing: --modle for --model-repository.
        starts = {name[: len(typed)]: name for name in reversed(known) if len(name) > len(typed)}
        close = [starts[start] for start in get_close_matches(typed, starts, n=1, cutoff=0.8)]
    return f" (did you mean {one_line(known[close[0]], 80)}?)" if close else ""


class InferdError(Exception):
    """Root of the tree; ``str(error)`` is one sentence fit for the reader it is meant for."""

    outcome: ClassVar[str] = "internal"
    # Why, where an outcome has several causes: a label too, so from a short list.
    reason: str = ""

    def bare(self) -> Self:
        """The error without the frames that it came through: they may hold an infer request, and keeping the error
        would keep its pool from being freed."""
        return self.with_traceback(None)


# -- what an operator reads -------------------------------------------------------


class ConfigurationError(InferdError):
    """A setting that can't be used: where it came from, which key, and what is allowed."""

    def __init__(self, source: str, key: str, problem: str, *, allowed: str = "") -> None:
        self.source, self.key, self.problem, self.allowed = source, key, problem, allowed
        where = f"{source}: {key}: " if key else f"{source}: "
        super().__init__(where + problem + (f"; allowed: {allowed}" if allowed else ""))
        self.every: Sequence[ConfigurationError] = (self,)

    @classmethod
    def of(cls, problems: "Sequence[ConfigurationError]") -> "ConfigurationError":
        """The first of ``problems``, which also says how many others there are; ``every`` has each of them."""
        first, *others = problems
        if not others:
            return first
        error = cls(first.source, first.key, first.problem, allowed=first.allowed)
        error.args = (f"{first} (and {len(others)} more mistake{'s' * (len(others) > 1)}; inferd check lists them)",)
        error.every = problems
        return error


class RepositoryError(InferdError):
    """A model folder or file that can't be served, and why."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")


class DeviceAbsent(InferdError):
    """A device string that names something this machine has not."""

    outcome = "unavailable"

    def __init__(self, device: str, absent: str, present: Iterable[str]) -> None:
        self.device, self.absent, self.present = device, absent, tuple(present)
        super().__init__(f"device '{device}' needs {absent}, which is absent; present: {listed(self.present)}")


class LoadFailed(InferdError):
    """A model version that could not be read, compiled or warmed up."""

    outcome = "unavailable"

    def __init__(self, model: str, version: int, problem: str) -> None:
        self.model, self.version, self.problem = model, version, problem
        super().__init__(f"model '{model}' version {version} failed to load: {problem}")


class LoadInterrupted(LoadFailed):
    """It did not load for a reason that lies outside of it and may pass: worth another try by itself."""


class ContentChanged(LoadInterrupted):
    """The version's files are not what they were when its loading began."""

    def __init__(self, model: str, version: int) -> None:
        problem = "its files changed while they were read; move them into place whole (write elsewhere, then rename)"
        super().__init__(model, version, problem)


# -- what a client reads ----------------------------------------------------------


class UnknownModel(InferdError):
    """No model of that name is in the repository."""

    outcome = "not_found"
    reason = "model"

    def __init__(self, model: str, known: Iterable[str] = ()) -> None:
        self.model = model
        super().__init__(f"unknown model '{one_line(model, 128)}'{did_you_mean(model, _similar(model, known))}")


def _similar(word: str, names: Iterable[str]) -> Sequence[str]:
    """Short ``names``, all of a few; of many those next to ``word`` when sorted from the front or from the back."""
    if len(word) > _LONGEST_COMPARED:
        return ()
    short = [name for name in names if len(name) <= _LONGEST_COMPARED]
    if len(short) <= _MOST_COMPARED:
        return short
    found: list[str] = []
    for turned, order in ((word, sorted(short)), (word[::-1], sorted(name[::-1] for name in short))):
        place = bisect_left(order, turned)
        near = order[max(0, place - _MOST_COMPARED // 4) : place + _MOST_COMPARED // 4]
        found += near if turned is word else [name[::-1] for name in near]
    return found


class UnknownVersion(InferdError):
    """The model exists, that version of it does not."""

    outcome = "not_found"
    reason = "version"

    def __init__(self, model: str, version: str, known: Iterable[int]) -> None:
        self.model, self.version, self.known = model, version, tuple(known)
        super().__init__(f"model '{model}' has no version '{one_line(version, 40)}'; versions: {listed(self.known)}")


class InvalidRequest(InferdError):
    """The request contradicts the protocol or the model's signature."""

    outcome = "invalid"

    def __init__(self, model: str, problem: str) -> None:
        self.model, self.problem = model, problem
        where = f"model '{one_line(model, 128)}': " if model else ""
        super().__init__(where + one_line(problem, 1000))


class ModelUnavailable(InferdError):
    """The model is known and can't answer now: loading, unloading or failed."""

    outcome = "unavailable"
    reason = "model"

    def __init__(self, model: str, state: str, why: str = "") -> None:
        self.model, self.state, self.why = model, state, why
        super().__init__(f"model '{model}' is {state}" + (f": {one_line(why)}" if why else ""))


class Draining(InferdError):
    """The daemon is shutting down and takes nothing new."""

    outcome = "unavailable"
    reason = "draining"

    def __init__(self) -> None:
        super().__init__("the server is draining and takes no new requests")


class Refused(InferdError):
    """More work than can be done in time; ``retry_after`` is a truthful wait in seconds, 0 where none is known."""

    outcome = "overloaded"

    def __init__(self, model: str, why: str, retry_after: float) -> None:
        self.model, self.retry_after = model, retry_after
        super().__init__(f"model '{model}': {why}; retry in {retry_after * 1000:.0f} ms")


class QueueFull(Refused):
    """The model's queue is at its limit."""

    reason = "queue_full"

    def __init__(self, model: str, limit: str, retry_after: float) -> None:
        self.limit = limit
        super().__init__(model, f"queue is full ({limit})", retry_after)


class Evicted(Refused):
    """The queue was full and a request of a higher priority took the place."""

    reason = "evicted"

    def __init__(self, model: str, retry_after: float) -> None:
        super().__init__(model, "queue is full and a request of higher priority came", retry_after)


class Overloaded(Refused):
    """Taken now, the request would be answered later than the model's objective allows."""

    reason = "objective"

    def __init__(self, model: str, expected: float, objective: float, *, retry_after: float) -> None:
        self.expected, self.objective = expected, objective
        super().__init__(
            model,
            f"overloaded: an answer would take {expected * 1000:.0f} ms, the objective is {objective * 1000:.0f} ms",
            retry_after,
        )


class Shed(Overloaded):
    """The same, found out after waiting: the model has become slower than it was on arrival."""

    reason = "late"


class SustainedOverload(Refused):
    """Taken now, the request would make the queue longer than lasting overload leaves any use for.

    ``expected`` is when it would be answered, ``most`` what requests are held to meanwhile; both in seconds.
    """

    reason = "overload"

    def __init__(self, model: str, expected: float, most: float, *, retry_after: float) -> None:
        self.expected, self.most = expected, most
        super().__init__(
            model,
            f"overloaded: an answer would take {expected * 1000:.0f} ms; while more is asked for than can be "
            f"computed, the queue is held to {most * 1000:.0f} ms",
            retry_after,
        )


class QuotaExceeded(Refused):
    """The client has as many requests in flight as one client may."""

    reason = "quota"

    def __init__(self, model: str, client: str, quota: int, *, retry_after: float) -> None:
        self.client, self.quota = client, quota
        whose = f"client '{one_line(client, 80)}'" if client else "clients that give no identity"
        super().__init__(model, f"{whose} may have {quota} requests in flight", retry_after)


class FailsTooOften(QuotaExceeded):
    """Requests of the client fail while they run, and have cost the others as much time as one client may."""

    reason = "failing"

    def __init__(self, model: str, client: str, retry_after: float) -> None:
        self.client = client
        who = f"requests of client '{one_line(client, 80)}'"
        Refused.__init__(self, model, f"{who} fail while they run and hold up others", retry_after)


class TooManySequences(Refused):
    """As many sequences are live as the model may have; or the client has ``held``, which is its part."""

    reason = "sequences"

    def __init__(self, model: str, limit: int, retry_after: float, *, held: int | None = None) -> None:
        self.limit, self.held = limit, held
        why = f"{limit} sequences are live, which is the limit"
        if held is not None:
            why = f"this client has {held} live sequences of {limit} at most; the other places are for other clients"
        super().__init__(model, why, retry_after)


class SequenceGone(InferdError):
    """The request belongs to no live sequence: it was never started, or has ended, or timed out."""

    outcome = "not_found"
    reason = "sequence"

    def __init__(self, model: str, sequence: int | str, why: str) -> None:
        self.model, self.sequence, self.why = model, sequence, why
        super().__init__(f"model '{model}': sequence '{one_line(str(sequence), 80)}' {why}; begin with sequence_start")


class SequenceLost(InferdError):
    """The sequence's state is gone or unknown; it has to be started again."""

    outcome = "aborted"
    reason = "sequence"

    def __init__(self, model: str, sequence: int | str, why: str) -> None:
        self.model, self.sequence, self.why = model, sequence, why
        super().__init__(f"model '{model}': sequence '{one_line(str(sequence), 80)}' is lost: {why}; start it anew")


class UnknownRegion(InferdError):
    """The caller has registered no shared memory region of that name."""

    outcome = "not_found"
    reason = "region"

    def __init__(self, region: str) -> None:
        self.region = region
        super().__init__(f"no shared memory region '{one_line(region, 80)}' is registered")


class RegionExists(InferdError):
    """The caller has a shared memory region of that name already."""

    outcome = "invalid"

    def __init__(self, region: str) -> None:
        self.region = region
        super().__init__(f"a shared memory region '{one_line(region, 80)}' is registered already; unregister it first")


class RegionLimit(InferdError):
    """As much shared memory is registered as may be."""

    outcome = "overloaded"
    reason = "regions"

    def __init__(self, limit: str) -> None:
        self.limit = limit
        super().__init__(f"no more shared memory can be registered: at most {limit} may be")


class RolloutRejected(InferdError):
    """A new version or other settings of a model did not pass their rollout; ``version`` still serves."""

    outcome = "unavailable"

    HOW: ClassVar[dict[str, str]] = {
        "failed": "rejected (failed: {})",
        "worse": "rejected (worse than the current version: {})",
        "wrong_output": "rejected (different outputs: {})",
        "stopped": "stopped ({})",
    }

    def __init__(self, model: str, decision: str, why: str, version: int) -> None:
        self.model, self.decision, self.why, self.version = model, decision, why, version
        how = self.HOW[decision].format(one_line(why))
        super().__init__(f"rollout of '{model}' {how}; still serving version {version}")


class DeadlinePassed(InferdError):
    """The deadline or the ``timeout`` parameter ran out while the request was in ``stage``.

    ``reason`` is arrival, forecast (it would have run out before the answer), queue, running or
    client (the client, which knows the same deadline, saw it a moment earlier).
    """

    outcome = "deadline"

    def __init__(self, model: str, stage: str, reason: str) -> None:
        self.model, self.stage, self.reason = model, stage, reason
        super().__init__(f"model '{model}': deadline passed while the request was {stage}")


class Cancelled(InferdError):
    """The client went away."""

    outcome = "cancelled"

    def __init__(self, model: str) -> None:
        self.model = model
        super().__init__(f"model '{model}': the client cancelled the request")


class NotReceived(InferdError):
    """The request never came to us whole. No client reads this: gRPC has ended the call itself."""

    outcome = "aborted_receive"

    def __init__(self) -> None:
        super().__init__("the request was too large, cancelled or out of time before it was read")


class NotAllowed(InferdError):
    """The call exists and this server's configuration does not permit it."""

    outcome = "denied"

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what} is not allowed" + (f"; {remedy}" if remedy else ""))


class NotAuthenticated(InferdError):
    """The call shows no credentials that hold. ``name`` is the token's where it was known, for the log."""

    outcome = "unauthenticated"
    SENTENCES: ClassVar[dict[str, str]] = {
        "missing": "no credentials: send 'authorization: Bearer TOKEN', or a certificate where those are verified",
        "malformed": "authorization is not of the form 'Bearer TOKEN'",
        "unknown": "the token is not known",
        "expired": "the token has expired",
    }

    def __init__(self, reason: str, name: str = "") -> None:
        self.reason, self.name = reason, name
        super().__init__(self.SENTENCES[reason])


class OutOfScope(InferdError):
    """The caller is known, and what they may do does not include this."""

    outcome = "denied"
    reason = "scope"

    def __init__(self, what: str, scope: str, name: str) -> None:
        self.what, self.scope, self.name = what, scope, name
        super().__init__(f"{what} needs the scope '{scope}', which '{one_line(name, 255)}' does not have")


class NotSupported(InferdError):
    """The call or option is part of the protocol and not of this server."""

    outcome = "unsupported"

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} is not supported by this server")


class InferenceFailed(InferdError):
    """The model ran and raised: data-dependent shapes, a lost device, a fault of OpenVINO."""

    outcome = "internal"
    reason = "inference"

    def __init__(self, model: str, problem: str) -> None:
        self.model, self.problem = model, problem
        super().__init__(f"model '{model}': inference failed: {problem}")


class InternalFault(InferdError):
    """A fault of inferd's own. The sentence is constant: details belong in the log."""

    outcome = "internal"
    reason = "fault"

    def __init__(self) -> None:
        super().__init__("internal error; the server's log has the details")
