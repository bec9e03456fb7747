"""Everything that can go wrong, as data.

An error carries fields and renders one sentence from them; it knows no transport.
``rpc/status.py`` maps each class to a gRPC code, and the metrics count it under its ``outcome``.
Sentences name the model, the field, what was expected and what arrived. They never contain a host
path, except those an operator reads at the console (:class:`ConfigurationError`,
:class:`RepositoryError`).
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar, Self

# Clients can ask for unknown models at will: comparing a name with all the others would cost milliseconds.
_MOST_COMPARED = 16
_LONGEST_COMPARED = 48


def one_line(text: str, limit: int = 300) -> str:
    """``text`` with control characters and line breaks flattened, cut at ``limit`` characters.

    Client-supplied names end up in messages and log lines; a newline in one must not
    be able to forge a second line.
    """
    # Cut before looking at each character: a client may send megabytes of text.
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
    """`` (did you mean grpc_bind?)`` where one of ``names`` looks like the misspelt ``word``, otherwise "". A
    ``prefix`` that all names share does not make them alike."""
    if len(word) > 2 * _LONGEST_COMPARED:
        return ""
    typed, known = word.removeprefix(prefix).lower(), {name.removeprefix(prefix).lower(): name for name in names}
    close = get_close_matches(typed, known, n=1)
    if not close and len(typed) > 2:
        # Also when the end is missing: --modle for --model-repository.
        starts = {name[: len(typed)]: name for name in reversed(known) if len(name) > len(typed)}
        close = [starts[start] for start in get_close_matches(typed, starts, n=1, cutoff=0.8)]
    return f" (did you mean {one_line(known[close[0]], 80)}?)" if close else ""


class InferdError(Exception):
    """Root of the tree; ``str(error)`` is one sentence, written for its reader."""

    outcome: ClassVar[str] = "internal"
    # The cause, for an outcome with several causes: a metric label too, so from a short list.
    reason: str = ""

    def bare(self) -> Self:
        """The error without its traceback: the frames may hold an infer request, and keeping the error would keep that
        request's pool from being freed."""
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
        """The first of ``problems``, which also says how many more there are; ``every`` has them all."""
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
    """A device string names a device that this machine does not have."""

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
    """Loading failed for a cause outside the model that may pass: worth another try."""


class ContentChanged(LoadInterrupted):
    """The version's files changed while it was loading."""

    def __init__(self, model: str, version: int) -> None:
        problem = "its files changed while inferd read them; write them elsewhere, then rename them into place"
        super().__init__(model, version, problem)


# -- what a client reads ----------------------------------------------------------


class UnknownService(InferdError):
    """The health service knows nothing of that name."""

    outcome = "not_found"
    reason = "service"

    def __init__(self, service: str) -> None:
        super().__init__(f"unknown service '{one_line(service, 128)}'")


class UnknownModel(InferdError):
    """The repository has no model of that name."""

    outcome = "not_found"
    reason = "model"

    def __init__(self, model: str, known: Iterable[str] = ()) -> None:
        self.model = model
        super().__init__(f"unknown model '{one_line(model, 128)}'{did_you_mean(model, _similar(model, known))}")


def _similar(word: str, names: Iterable[str]) -> Sequence[str]:
    """Short ``names``: all if there are few, otherwise the neighbours of ``word`` when sorted by start and by end."""
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
    """The model exists, but not in that version."""

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


class ResponseTooLarge(InvalidRequest):
    """The model's response to this request has more bytes than a response may have."""

    reason = "response"

    def __init__(self, model: str, nbytes: int, most: int) -> None:
        super().__init__(model, f"the response has {nbytes} bytes; at most {most} are allowed (max_response_bytes)")


class ModelUnavailable(InferdError):
    """The model is known but can't serve now: loading, unloading or failed."""

    outcome = "unavailable"
    reason = "model"

    def __init__(self, model: str, state: str, why: str = "") -> None:
        self.model, self.state, self.why = model, state, why
        super().__init__(f"model '{model}' is {state}" + (f": {one_line(why)}" if why else ""))


class Draining(InferdError):
    """The daemon is shutting down and takes no new requests."""

    outcome = "unavailable"
    reason = "draining"

    def __init__(self) -> None:
        super().__init__("the server is draining and takes no new requests")


class Refused(InferdError):
    """More work than can be done in time; ``retry_after`` is an honest wait in seconds, 0 if none is known."""

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
    """The queue was full and a request of higher priority took this one's place."""

    reason = "evicted"

    def __init__(self, model: str, retry_after: float) -> None:
        super().__init__(model, "queue is full and a request of higher priority arrived", retry_after)


class Overloaded(Refused):
    """The response would come later than the model's objective allows."""

    reason = "objective"

    def __init__(self, model: str, expected: float, objective: float, *, retry_after: float) -> None:
        self.expected, self.objective = expected, objective
        super().__init__(
            model,
            f"overloaded: a response would take {expected * 1000:.0f} ms, the objective is {objective * 1000:.0f} ms",
            retry_after,
        )


class Shed(Overloaded):
    """The same, found out after waiting: the model has slowed down since the request arrived."""

    reason = "late"


class SustainedOverload(Refused):
    """The request would make the queue longer than is useful under sustained overload.

    ``expected`` is the time to the response, ``most`` the limit on the queue, both in seconds.
    """

    reason = "overload"

    def __init__(self, model: str, expected: float, most: float, *, retry_after: float) -> None:
        self.expected, self.most = expected, most
        super().__init__(
            model,
            f"overloaded: a response would take {expected * 1000:.0f} ms; under sustained overload "
            f"the queue is limited to {most * 1000:.0f} ms",
            retry_after,
        )


class QuotaExceeded(Refused):
    """The client already has as many requests in flight as one client may."""

    reason = "quota"

    def __init__(self, model: str, client: str, quota: int, *, retry_after: float) -> None:
        self.client, self.quota = client, quota
        whose = f"client '{one_line(client, 80)}'" if client else "clients without an identity"
        super().__init__(model, f"{whose} may have {quota} requests in flight", retry_after)


class FailsTooOften(QuotaExceeded):
    """The client's requests fail while running, and have cost other clients as much time as one client may."""

    reason = "failing"

    def __init__(self, model: str, client: str, retry_after: float) -> None:
        self.client = client
        who = f"requests of client '{one_line(client, 80)}'"
        Refused.__init__(self, model, f"{who} fail while running and delay other clients", retry_after)


class TooManySequences(Refused):
    """The model has as many live sequences as allowed; or the client has ``held``, which is its share."""

    reason = "sequences"

    def __init__(self, model: str, limit: int, retry_after: float, *, held: int | None = None) -> None:
        self.limit, self.held = limit, held
        why = f"the limit of {limit} live sequences is reached"
        if held is not None:
            why = f"this client has {held} of {limit} live sequences; the rest are reserved for other clients"
        super().__init__(model, why, retry_after)


class SequenceGone(InferdError):
    """The request belongs to no live sequence: it never started, has ended, or has timed out."""

    outcome = "not_found"
    reason = "sequence"

    def __init__(self, model: str, sequence: int | str, why: str) -> None:
        self.model, self.sequence, self.why = model, sequence, why
        super().__init__(f"model '{model}': sequence '{one_line(str(sequence), 80)}' {why}; begin with sequence_start")


class SequenceLost(InferdError):
    """The sequence's state is gone or unknown; the client must start it again."""

    outcome = "aborted"
    reason = "sequence"

    def __init__(self, model: str, sequence: int | str, why: str) -> None:
        self.model, self.sequence, self.why = model, sequence, why
        super().__init__(f"model '{model}': sequence '{one_line(str(sequence), 80)}' is lost: {why}; start it again")


class UnknownRegion(InferdError):
    """The caller has not registered a shared memory region of that name."""

    outcome = "not_found"
    reason = "region"

    def __init__(self, region: str) -> None:
        self.region = region
        super().__init__(f"no shared memory region '{one_line(region, 80)}' is registered")


class RegionExists(InferdError):
    """The caller has already registered a shared memory region of that name."""

    outcome = "invalid"

    def __init__(self, region: str) -> None:
        self.region = region
        super().__init__(f"a shared memory region '{one_line(region, 80)}' is registered already; unregister it first")


class RegionLimit(InferdError):
    """The caller may not register more shared memory."""

    outcome = "overloaded"
    reason = "regions"

    def __init__(self, limit: str) -> None:
        self.limit = limit
        super().__init__(f"cannot register more shared memory: the limit is {limit}")


class RolloutRejected(InferdError):
    """A new version or other settings of a model did not pass their rollout; ``version`` still serves."""

    outcome = "unavailable"

    HOW: ClassVar[dict[str, str]] = {
        "failed": "rejected (failed: {})",
        "worse": "rejected (worse than the current version: {})",
        "wrong_output": "rejected (different outputs: {})",
        "stopped": "stopped ({})",
    }

    def __init__(self, model: str, decision: str, why: str, *, version: int) -> None:
        self.model, self.decision, self.why, self.version = model, decision, why, version
        how = self.HOW[decision].format(one_line(why))
        super().__init__(f"rollout of '{model}' {how}; still serving version {version}")


class DeadlinePassed(InferdError):
    """The deadline or the ``timeout`` parameter ran out while the request was in ``stage``.

    ``reason`` is arrival, forecast (it would run out before the response), queue, running or
    client (the client, which knows the same deadline, gave up a moment earlier).
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
    """The request never arrived whole. No client reads this: gRPC has ended the call itself."""

    outcome = "aborted_receive"

    def __init__(self) -> None:
        super().__init__("the request was too large, was cancelled or passed its deadline before inferd read it")


class MessageTimeout(InferdError):
    """The request's message took too long to arrive."""

    outcome = "aborted_receive"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the request did not arrive within the {seconds:g} s of message_timeout")


class MemoryFull(Refused):
    """The daemon uses as much memory as it may, and this request was still on its way, or is a large one."""

    reason = "memory"

    def __init__(self, limit: int, retry_after: float) -> None:
        self.model, self.retry_after = "", retry_after
        why = f"the server uses all {limit} bytes of max_memory_bytes and takes no large requests"
        InferdError.__init__(self, f"{why}; retry in {retry_after * 1000:.0f} ms")


class IncomingFull(Refused):
    """Requests on their way hold as many bytes as they may together, and this one was among the largest."""

    reason = "memory"

    def __init__(self, limit: int, retry_after: float) -> None:
        self.model, self.retry_after = "", retry_after
        why = f"requests on their way hold all {limit} bytes of max_incoming_bytes"
        InferdError.__init__(self, f"{why}; retry in {retry_after * 1000:.0f} ms")


class NotAllowed(InferdError):
    """The call exists, but this server's configuration does not permit it."""

    outcome = "denied"

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what} is not allowed" + (f"; {remedy}" if remedy else ""))


class NotAuthenticated(InferdError):
    """The call carries no valid credentials. ``name`` is the token's, if known, for the log."""

    outcome = "unauthenticated"
    SENTENCES: ClassVar[dict[str, str]] = {
        "missing": "no credentials: send 'authorization: Bearer TOKEN', or a client certificate if the server verifies "
        "them",
        "malformed": "authorization is not of the form 'Bearer TOKEN'",
        "unknown": "unknown token",
        "expired": "the token has expired",
    }

    def __init__(self, reason: str, name: str = "") -> None:
        self.reason, self.name = reason, name
        super().__init__(self.SENTENCES[reason])


class OutOfScope(InferdError):
    """The client is known but lacks the scope."""

    outcome = "denied"
    reason = "scope"

    def __init__(self, what: str, scope: str, name: str) -> None:
        self.what, self.scope, self.name = what, scope, name
        super().__init__(f"{what} needs the scope '{scope}', which '{one_line(name, 255)}' does not have")


class NotSupported(InferdError):
    """The protocol has this call or option, this server does not."""

    outcome = "unsupported"

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} is not supported by this server")


class InferenceFailed(InferdError):
    """The run failed: data-dependent shapes, a lost device, a fault of OpenVINO."""

    outcome = "internal"
    reason = "inference"

    def __init__(self, model: str, problem: str) -> None:
        self.model, self.problem = model, problem
        super().__init__(f"model '{model}': inference failed: {problem}")


class InternalFault(InferdError):
    """A fault in inferd itself. The sentence is constant: details belong in the log."""

    outcome = "internal"
    reason = "fault"

    def __init__(self) -> None:
        super().__init__("internal error; the server's log has the details")
