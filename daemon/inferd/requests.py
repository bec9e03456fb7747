"""A request on its way through the daemon, and its outcome.

A :class:`Request` carries everything that later stages need: its inputs in port order, its
deadline, its reply slot and its timestamps. All times are nanoseconds of one monotonic
clock (``time.monotonic_ns``).
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from inferd.errors import InferdError
from inferd.tensors import Placed, Tensor
from inferd.trace_context import TraceContext


@dataclass(slots=True)
class Stages:
    """When the request reached each stage; 0 means never.

    received -> queued -> held -> started -> submitted -> computed -> taken -> copied -> answered.
    ``held`` is when it began to wait to fill a batch while an infer request was free, 0 if it never
    did; ``computed`` is stamped on OpenVINO's own thread, ``taken`` when the event loop handles it.
    ``received`` is an estimate of when it reached the process: it had ``waited`` that long, in nanoseconds, before it
    was seen.
    """

    received: int = 0
    queued: int = 0
    held: int = 0
    started: int = 0
    submitted: int = 0
    computed: int = 0
    taken: int = 0
    copied: int = 0
    answered: int = 0
    waited: int = 0

    def total(self) -> int:
        """Nanoseconds from receiving the request to its response."""
        return self.answered - self.received

    def durations(self) -> tuple[int, int, int, int, int, int, int, int]:
        """Nanoseconds of each stage of a successful request; they add up to :meth:`total`.

        Parsing and checking; waiting to be seen and for an infer request; waiting to fill a batch; copying in;
        computing; hand-over to the event loop; copying out; serialising the response.
        """
        held, started, waited = self.held or self.started, self.started, self.waited
        return (
            self.queued - self.received - waited,
            held - self.queued + waited,
            started - held,
            self.submitted - started,
            self.computed - self.submitted,
            self.taken - self.computed,
            self.copied - self.taken,
            self.answered - self.copied,
        )

    # The same one by one, 0 for a stage that was not completed.

    def decode(self) -> int:
        """Nanoseconds spent parsing and checking."""
        return _between(self.received + self.waited, self.queued)

    def queue(self) -> int:
        """Nanoseconds spent waiting to be seen, and for an infer request."""
        return self.waited + _between(self.queued, self.held or self.started)

    def batch(self) -> int:
        """Nanoseconds spent waiting to fill a batch while an infer request was free."""
        return _between(self.held, self.started)

    def input(self) -> int:
        """Nanoseconds spent copying inputs into the infer request."""
        return _between(self.started, self.submitted)

    def compute(self) -> int:
        """Nanoseconds from handing over to OpenVINO to its completion."""
        return _between(self.submitted, self.computed)

    def handover(self) -> int:
        """Nanoseconds from completion until the event loop handled it."""
        return _between(self.computed, self.taken)

    def output(self) -> int:
        """Nanoseconds spent copying outputs out."""
        return _between(self.taken, self.copied)

    def encode(self) -> int:
        """Nanoseconds spent serialising the response."""
        return _between(self.copied, self.answered)


def _between(start: int, end: int) -> int:
    return end - start if start and end else 0


class Reply(Protocol):
    """The slot for a response, filled exactly once, when the request ends."""

    def answer(self, outputs: Sequence[Tensor]) -> None:
        """Encode ``outputs``; their data is only valid during this call."""

    def fail(self, error: InferdError) -> None:
        """End the request with ``error``."""


class NoReply:
    """The reply of a request that is only judged, and never runs."""

    def answer(self, outputs: Sequence[Tensor]) -> None:
        """Raises AssertionError."""
        raise AssertionError(f"{len(outputs)} outputs of a request that never runs")

    def fail(self, error: InferdError) -> None:
        """Raises AssertionError."""
        raise AssertionError("a request that never runs has failed") from error


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """A request's place in a sequence of requests that share a state.

    The sequence lives no longer than ``owner``, if there is one: the connection it came over. It belongs to
    ``client``, as far as clients are told apart: an ``id`` of another client is another sequence.
    """

    id: int | str
    start: bool = False
    end: bool = False
    owner: object | None = None
    client: str = ""


NO_LIMIT = 1 << 62
"""Bytes of a response that may have any number."""


@dataclass(slots=True, eq=False)
class Request:
    """One inference to run.

    ``inputs`` follow the model's port order; ``outputs`` are the port indexes requested,
    in the order to answer them. ``deadline`` is absolute, None without one.
    A lower ``priority`` number goes first; 0 requests none. ``rows`` is how many rows
    the request carries; requests of an equal ``batch_key`` may run as one batch, requests with None run alone.
    ``client`` is the name that a quota counts it under. Inside a sequence, state inputs are empty.
    ``shadow`` requests are inferd's own, to compare outputs, and no metric counts them.
    ``nbytes`` and ``answer_nbytes`` are sizes on the wire, ``answer_limit`` the most that the latter may be;
    ``made_nbytes`` were made of the request in addition. ``trace`` is the trace it belongs to, if any.
    ``into`` are the outputs, by port index, that go into a client's memory; ``shared`` says that an input is there.
    """

    model: str
    version: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[int, ...]
    reply: Reply
    id: str = ""
    deadline: int | None = None
    priority: int = 0
    nbytes: int = 0
    made_nbytes: int = 0
    answer_nbytes: int = 0
    answer_limit: int = NO_LIMIT
    rows: int = 1
    batch_key: Hashable | None = None
    client: str = ""
    step: SequenceStep | None = None
    stages: Stages = field(default_factory=Stages)
    device: str = ""
    shadow: bool = False
    trace: TraceContext | None = None
    into: tuple[tuple[int, Placed], ...] = ()
    shared: bool = False

    @property
    def held_nbytes(self) -> int:
        """Bytes that it holds while it waits."""
        return self.nbytes + self.made_nbytes


class Samples(deque[tuple[Tensor, ...]]):
    """Recent inputs, to compare outputs with: of one request in so many, a few at a time, and only small
    ones."""

    _EVERY, _MOST, _BYTES = 100, 4, 4 << 20

    def __init__(self) -> None:
        super().__init__(maxlen=self._MOST)

    def offer(self, request: Request) -> int:
        """Keep the inputs of ``request`` if possible; returns how many requests to skip until the next offer. A
        request of a sequence means nothing by itself, and a client's shared memory may be gone later."""
        if request.step is not None or request.nbytes > self._BYTES or request.shadow:
            return 0
        if not request.shared:
            # A view would keep the whole message, and can't be sent to the process that tunes.
            self.append(tuple([tensor.copied() for tensor in request.inputs]))
        return self._EVERY


class Observation(NamedTuple):
    """The result of a request: the one record behind log line, metrics, statistics and spans.

    ``model`` is "_OTHER" and ``version`` empty where the request named no known model.
    ``outcome`` is "ok" or the failing error's ``outcome``. ``batch_rows`` are the rows of the
    batch it was part of; one request of each batch is its ``leader``.
    A tuple, because one is made for every request.
    """

    model: str
    version: str
    outcome: str
    stages: Stages
    device: str = ""
    id: str = ""
    rows: int = 1
    batch_rows: int = 1
    leader: bool = True
    error: InferdError | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    trace: TraceContext | None = None

    @property
    def reason(self) -> str:
        """Why it failed, where its outcome has several causes."""
        return "" if self.error is None else self.error.reason
