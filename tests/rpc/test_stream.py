"""The counts of a stream, when it stops reading, and in which order it sends."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferd.requests import Stages
from inferd.rpc.call import InferCall, Recipient, Wrap
from inferd.rpc.codec import answer_bytes
from inferd.rpc.stream import InferStream, StreamWindow
from inferd.tensors import Dim, DType, Signature, TensorSpec

SIZES = st.integers(0, 60)
MODELS = st.sampled_from(["one", "another"])


class Walk(RuleBasedStateMachine):
    """A stream whose models respond arbitrarily, compared with a ledger of what each request holds."""

    @initialize(requests=st.integers(1, 6), nbytes=st.integers(1, 100))
    def begin(self, requests: int, nbytes: int) -> None:
        self.limits = requests, nbytes
        self.window = StreamWindow(requests, nbytes)
        self.unanswered: list[tuple[str, int, int | None]] = []
        self.unsent: list[int] = []
        self.seen: dict[str, int] = {}

    @precondition(lambda self: self.window.open)
    @rule(model=MODELS, nbytes=SIZES, answer=st.none() | SIZES)
    def take(self, model: str, nbytes: int, answer: int | None) -> None:
        reserve = self.seen.get(model, self.limits[1]) if answer is None else answer
        counted = self.window.take(model, nbytes, answer)
        assert counted == nbytes + reserve
        self.unanswered.append((model, counted, answer))
        if answer is None and model not in self.seen:
            assert not self.window.open

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), size=SIZES)
    def answered(self, data: Any, size: int) -> None:
        model, counted, known = self.pick(data)
        size = size if known is None else known
        self.window.answered(model, counted, size)
        self.seen[model] = max(size, self.seen.get(model, 0))
        self.unsent.append(size)

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), size=SIZES)
    def failed(self, data: Any, size: int) -> None:
        _, counted, _ = self.pick(data)
        self.window.failed(counted, size)
        self.unsent.append(size)

    @precondition(lambda self: self.unsent)
    @rule()
    def sent(self) -> None:
        self.window.sent(self.unsent.pop(0))

    def pick(self, data: Any) -> tuple[str, int, int | None]:
        return self.unanswered.pop(data.draw(st.integers(0, len(self.unanswered) - 1)))

    @invariant()
    def look(self) -> None:
        requests = len(self.unanswered) + len(self.unsent)
        nbytes = sum(counted for _, counted, _ in self.unanswered) + sum(self.unsent)
        assert (self.window.requests, self.window.bytes) == (requests, nbytes)
        assert self.window.open == (requests < self.limits[0] and nbytes < self.limits[1])
        # However large the requests before were: a stream that holds nothing continues.
        assert requests or self.window.open


TestWalk = Walk.TestCase


@given(
    st.integers(1, 100),
    st.lists(st.tuples(SIZES, SIZES, st.integers(0, 3)), min_size=1),
)
def test_known_responses_exceed_the_limit_by_at_most_one_request_and_its_response(
    limit: int, requests: Sequence[tuple[int, int, int]]
) -> None:
    window = StreamWindow(len(requests), limit)
    in_flight: list[tuple[int, int]] = []
    for nbytes, answer, ended in requests:
        if window.open:
            in_flight.append((window.take("m", nbytes, answer), answer))
            assert window.bytes < limit + nbytes + answer
        for counted, size in in_flight[:ended]:
            window.answered("m", counted, size)
            window.sent(size)
        del in_flight[:ended]


def test_no_request_is_accepted_until_the_size_of_a_models_responses_is_known() -> None:
    window = StreamWindow(10, 100)
    counted = window.take("m", 5, None)
    assert (counted, window.open) == (105, False)
    window.answered("m", counted, 20)
    assert window.open
    assert [window.take("m", 5, None), window.take("m", 5, None)] == [25, 25]
    assert (window.bytes, window.open) == (70, True)


def test_a_failure_tells_nothing_about_the_size_of_responses() -> None:
    window = StreamWindow(10, 100)
    window.failed(window.take("m", 5, None), 30)
    assert (window.bytes, window.open) == (30, True)
    assert window.take("m", 5, None) == 105


def test_each_model_has_its_own_largest_answer() -> None:
    window = StreamWindow(10, 100)
    for model, size in (("large", 40), ("small", 2), ("large", 30)):
        window.answered(model, window.take(model, 0, None), size)
        window.sent(size)
    assert [window.take("small", 0, None), window.take("large", 0, None)] == [2, 40]


FIXED = TensorSpec("fixed", DType.FP32, (Dim(2, 2), Dim(3, 3)))
ROWS = TensorSpec("rows", DType.INT64, (Dim(1, 8), Dim(5, 5)))
STEPS = TensorSpec("steps", DType.FP16, (Dim(5, 5), Dim(1, 8)), batch_axis=1)
OPEN = TensorSpec("open", DType.FP32, (Dim(2, 2), Dim(0, None)))
ANY_RANK = TensorSpec("any", DType.FP32, None)
TEXT = TensorSpec("text", DType.BYTES, (Dim(2, 2),))
SCALAR = TensorSpec("scalar", DType.FP64, ())


@pytest.mark.parametrize(
    ("outputs", "asked", "max_batch", "expected"),
    [
        ([FIXED], [0], 0, 24),
        ([SCALAR], [0], 0, 8),
        ([FIXED, OPEN, SCALAR], [2, 0], 0, 32),
        ([ROWS, STEPS], [0, 1], 8, 3 * 5 * 8 + 3 * 5 * 2),
        ([ROWS], [0], 0, None),
        ([FIXED, OPEN], [0, 1], 0, None),
        ([ANY_RANK], [0], 0, None),
        ([ANY_RANK], [0], 8, None),
        ([TEXT], [0], 0, None),
    ],
)
def test_the_size_of_an_answer_is_known_where_the_signature_fixes_it(
    outputs: Sequence[TensorSpec], asked: Sequence[int], max_batch: int, expected: int | None
) -> None:
    assert answer_bytes(Signature((), tuple(outputs), max_batch), asked, 3) == expected


class Client:
    """The server's side of a call, by which a test plays the client: ``sent`` has what the stream has sent so far."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = metadata
        self.sent: list[bytes] = []
        self.ends: list[int] = []
        self.asked: Callable[[Any, bytes | None], None] | None = None
        self.on_its_way: Callable[[bool], None] | None = None
        self.leave: Callable[[], object] = lambda: None

    def watch(self, left: Callable[[], object]) -> None:
        self.leave = left

    def receive(self, then: Callable[[Any, bytes | None], None]) -> None:
        assert self.asked is None, "one message at a time"
        self.asked = then

    def send(self, message: bytes, then: Callable[[bool], None]) -> None:
        assert self.on_its_way is None, "one message at a time"
        self.sent.append(message)
        self.on_its_way = then

    def finish(self) -> None:
        self.ends.append(0)

    def fail(self, code: int, _: str, __: Any) -> None:
        self.ends.append(code)

    def ask(self, raw: bytes | None = b"asked") -> None:
        assert self.asked is not None
        then, self.asked = self.asked, None
        then(self, raw)

    def take(self) -> None:
        """The message that was sent last is on the wire."""
        assert self.on_its_way is not None
        then, self.on_its_way = self.on_its_way, None
        then(True)


class Open:
    """A stream of ``client``; ``calls`` are the inferences that it has begun, for a test to answer."""

    def __init__(self, client: Client, max_requests: int = 8) -> None:
        self.calls: list[InferCall] = []
        self.ends = 0
        self.stream = InferStream(self._begin, client, window=StreamWindow(max_requests, 1000), ended=self._ended)  # type: ignore[arg-type]
        self.stream.read()

    def _begin(self, _: bytes, wrap: Wrap, recipient: Recipient) -> InferCall:
        self.calls.append(InferCall(recipient, wrap, nbytes=0, stages=Stages(0), trace=None))
        return self.calls[-1]

    def _ended(self, _: InferStream) -> None:
        self.ends += 1

    def answer(self, number: int, encoded: bytes) -> None:
        call = self.calls[number]
        call.ended = True
        call.recipient.respond(call, encoded)


@pytest.mark.parametrize("metadata", [(), (("inferd-unordered", "true"),)], ids=["ordered", "unordered"])
def test_responses_are_sent_in_the_order_of_requests_unless_the_client_wants_none(metadata: Any) -> None:
    client = Client(*metadata)
    stream = Open(client)
    for _ in range(3):
        client.ask()
    for number, encoded in ((2, b"c"), (0, b"a"), (1, b"b")):
        stream.answer(number, encoded)
    for _ in range(3):
        client.take()
    assert client.sent == ([b"c", b"a", b"b"] if metadata else [b"a", b"b", b"c"])
    client.ask(None)
    assert (client.ends, stream.ends) == ([0], 1)


def test_no_request_is_received_while_the_window_is_closed() -> None:
    client = Client()
    stream = Open(client, max_requests=2)
    client.ask()
    client.ask()
    assert client.asked is None
    stream.answer(1, b"b")
    stream.answer(0, b"a")
    assert client.asked is None
    client.take()
    assert client.asked is not None
    assert client.sent == [b"a", b"b"]


@pytest.mark.parametrize(("complete", "code"), [(True, 0), (False, 14)], ids=["sent", "stopped"])
def test_a_stream_ends_once_all_that_was_read_is_answered_and_sent(complete: bool, code: int) -> None:
    client = Client()
    stream = Open(client)
    client.ask()
    client.ask()
    if complete:
        client.ask(None)
    else:
        stream.stream.stop_reading()
    for number in (0, 1):
        assert client.ends == []
        stream.answer(number, b"")
        client.take()
    assert (client.ends, stream.ends) == ([code], 1)
    # What arrives after that is no request.
    if not complete:
        client.ask()
    client.leave()
    assert (len(stream.calls), client.ends, stream.ends) == (2, [code], 1)


def test_a_stream_that_its_client_has_left_abandons_its_calls_and_leaves_nothing_behind() -> None:
    client = Client()
    stream = Open(client)
    for _ in range(3):
        client.ask()
    stream.answer(1, b"b")
    client.leave()
    assert [call.ended for call in stream.calls] == [True] * 3
    # gRPC ends what was asked of it.
    client.ask(None)
    assert (client.sent, client.ends, stream.ends, len(stream.calls)) == ([], [], 1, 3)
    gone = weakref.ref(stream.stream)
    gc.disable()
    try:
        client.leave = lambda: None
        stream.calls.clear()
        del stream.stream
        assert gone() is None
    finally:
        gc.enable()
