"""Ten thousand requests that end in every way there is: the clients' own tally is what the metrics say, exactly.

What a client can't know is avoided, not tolerated: a request is only given up while it certainly waits behind a
run that will not end by itself, or is certainly part of such a run. But for one thing; see IMPATIENT.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from inferd.metrics.instruments import OTHER, STAGES
from inferd.tensors import DType
from tests import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.gauges import wait_until
from tests.system.series import Series, scrape
from tests.system.wire import OK, connect, echo, method, request, steps

pytestmark = pytest.mark.system

REQUESTS = 10_000
SEED = 20_26
CLIENTS = 4
AT_ONCE = 6
"""Unary requests that a client has in flight at a time, beside one stream."""
CROWD, STREAMED = 50, 10
"""Requests that a client lets wait at a time, and how many of them on a stream; as many as its quota allows."""
QUEUE_LENGTH = CLIENTS * CROWD
"""How many may wait."""
MAX_MESSAGE = 16 << 10
"""Bytes of a request."""
LOOPS, LONG = 100, 400
"""A run of so many steps in each loop takes some ten seconds if it is not cancelled, which it always is."""
OBJECTIVE = 0.1
"""Seconds."""
PATIENCE = 2.0
"""A client's own deadline, in seconds: a run takes several times as long."""
IMPATIENT = "impatient"
"""The model of all requests whose clients have a deadline of their own. When it passes a client hangs up, and whether
it saw that before or after the server is chance: here alone the server may have seen it leave."""

LOOKS = 1000
"""Scrapes until what is to be seen must have been."""

TOTAL, RUNS, LENGTH = "inferd_requests_total", "inferd_infer_requests_busy", "inferd_queue_length"

OUTCOMES = {
    OK: "ok",
    StatusCode.INVALID_ARGUMENT: "invalid",
    StatusCode.NOT_FOUND: "not_found",
    StatusCode.UNAVAILABLE: "unavailable",
    StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    StatusCode.DEADLINE_EXCEEDED: "deadline",
    StatusCode.CANCELLED: "cancelled",
    StatusCode.INTERNAL: "internal",
}
ABORTED_RECEIVE = "aborted_receive"
"""The outcome of what gRPC refuses by itself, before its bytes are here."""
REASONS = {
    ": queue is full (": "queue_full",
    ": queue is full and a request of higher priority arrived": "evicted",
    ": overloaded: a response would take ": "objective",
    f" may have {CROWD} requests in flight": "quota",
}
"""What a sentence says that refuses -> the reason it should be counted under."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = tmp_path_factory.mktemp("repository")
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")
    models.save(models.identity(DType.BYTES, [-1]), repository, "text")
    models.save(models.sum_and_difference([-1, 2]), repository, "rows", settings="[batching]\nmax_size = 8")
    untried = echo_models.serial(QUEUE_LENGTH) + "[warmup]\nruns = 0\n"
    models.save(echo_models.picky(), repository, "picky", settings=untried)
    for name in ("jammed", "held", IMPATIENT):
        models.save(echo_models.steps(LOOPS), repository, name, settings=untried)
    objective = f"[objective]\nlatency_slo = {OBJECTIVE}\n"
    models.save(echo_models.steps(LOOPS), repository, "strict", settings=untried + objective)
    broken = repository / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.xml").write_text('<?xml version="1.0"?><net name="broken" version="11"><layers/></net>')
    flags = ["--cache-dir", str(cache_dir), "--request-log", "off", "--client-max-requests", str(CROWD)]
    # What inferd asks of an idle model by itself would queue with the others, and teach it what runs take.
    flags += ["--max-message-bytes", str(MAX_MESSAGE), "--probe-interval", "0"]
    with Daemon(repository, *flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


# -- the clients' own books -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """A request on the wire, the model it is to be counted under, and its rows."""

    model: str
    raw: bytes
    rows: int = 1

    @classmethod
    def of(cls, message: pb.ModelInferRequest, rows: int = 1) -> "Ask":
        return cls(message.model_name, message.SerializeToString(), rows)


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests by model and outcome, those refused by model and reason; bytes and rows by model."""

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked_bytes: Counter[str] = field(default_factory=Counter)
    answer_bytes: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)

    def answered(self, ask: Ask, nbytes: int) -> None:
        self.count(ask, OK)
        self.answer_bytes[ask.model] += nbytes
        self.rows[ask.model] += ask.rows

    def count(self, ask: Ask, code: StatusCode, sentence: str = "") -> None:
        if len(ask.raw) > MAX_MESSAGE:
            assert code is StatusCode.RESOURCE_EXHAUSTED
            assert "message larger than max" in sentence
            self.ended[ask.model, ABORTED_RECEIVE] += 1
            return
        self.ended[ask.model, OUTCOMES[code]] += 1
        self.asked_bytes[ask.model] += len(ask.raw)
        if code is StatusCode.RESOURCE_EXHAUSTED:
            [reason] = [reason for said, reason in REASONS.items() if said in sentence]
            self.refused[ask.model, reason] += 1


class Client:
    """One connection, and a name that quotas know it by; keeps the books on how its requests end."""

    def __init__(self, channel: grpc.aio.Channel, name: str, tally: Tally) -> None:
        self._channel = channel
        self._metadata = (("inferd-client", name),)
        self._tally = tally

    def start(self, ask: Ask, patience: float | None = None) -> Any:
        """A unary call in flight."""
        # Answers come as bytes, to be measured.
        infer = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return infer(ask.raw, metadata=self._metadata, timeout=patience)

    async def end(self, ask: Ask, call: Any) -> None:
        """Wait until ``call``, which asks for ``ask``, has ended."""
        if (code := await call.code()) is OK:
            self._tally.answered(ask, len(await call))
        else:
            self._tally.count(ask, code, await call.details())

    async def infer(self, ask: Ask) -> None:
        await self.end(ask, self.start(ask))

    async def open(self, asks: Iterable[Ask], patience: float | None = None) -> Any:
        """A stream with ``asks`` sent."""
        call = method(self._channel, "ModelStreamInfer")(metadata=self._metadata, timeout=patience)
        for ask in asks:
            await call.write(ask.raw)
        return call

    async def close(self, asks: Iterable[Ask], call: Any) -> None:
        """Read the answers to ``asks``, which were sent on the stream ``call``; it ends well."""
        await call.done_writing()
        for ask in asks:
            answer = await call.read()
            if not (said := answer.error_message):
                self._tally.answered(ask, answer.ByteSize())
            else:
                self._tally.count(ask, StatusCode[said[1 : said.index("]")]], said)
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is OK

    async def stream(self, asks: Sequence[Ask]) -> None:
        await self.close(asks, await self.open(asks))

    async def gone(self, asks: Iterable[Ask], call: Any, code: StatusCode) -> None:
        """The stream ``call`` ends as ``code`` with all of ``asks`` unanswered."""
        assert await call.code() is code
        for ask in asks:
            self._tally.count(ask, code)


# -- what needs no waiting --------------------------------------------------------


def good(number: int) -> Ask:
    match number % 4:
        case 0:
            return Ask.of(echo(range(number % 100 + 1)))
        case 1:
            message = pb.ModelInferRequest(model_name="text")
            text = message.inputs.add(name="x", datatype="BYTES", shape=[1])
            text.contents.bytes_contents.append(b"x" * (number % 1000))
            return Ask.of(message)
        case _:
            rows = number % 8 + 1
            left = np.full((rows, 2), number, np.float32)
            return Ask.of(request("rows", {"left": left, "right": left}), rows)


def malformed(number: int) -> Ask:
    match number % 5:
        case 0:
            return Ask.of(request("echo", {}))
        case 1:
            return Ask.of(request("echo", {"x": np.zeros(2, np.int32)}))
        case 2:
            return Ask.of(request("rows", {"left": np.zeros((number % 8 + 1, 2), np.float32)}))
        case 3:
            return Ask.of(echo([number], parameters={f"key {number}": 1}))
        case _:
            return Ask(OTHER, b"\xff" * (number % 100 + 1))


def unknown(number: int) -> Ask:
    return Ask(OTHER, request(f"guess-{number}", {"x": np.ones(1, np.int64)}).SerializeToString())


def unknown_version(number: int) -> Ask:
    return Ask.of(echo([1], version=str(number + 2)))


def unavailable(number: int) -> Ask:
    return Ask.of(request("broken", {}, str(number)))


def too_large(number: int) -> Ask:
    return Ask(OTHER, echo(range(MAX_MESSAGE // 8 + number)).SerializeToString())


def failing(number: int) -> Ask:
    """Fails while it runs."""
    return Ask.of(request("picky", {"x": np.zeros(4, np.float32), "shape": np.array([3, number % 4 + 2], np.int64)}))


KINDS: dict[Callable[[int], Ask], int] = {
    good: 55,
    malformed: 17,
    unknown: 8,
    unknown_version: 8,
    unavailable: 7,
    too_large: 2,
    failing: 3,
}
"""Per cent of those that need no waiting."""


async def mixture(clients: Sequence[Client], asks: Iterator[Ask]) -> None:
    """Send ``asks``, some side by side in calls of their own, the others in streams."""

    async def call(client: Client) -> None:
        for ask in asks:
            await client.infer(ask)

    async def stream(client: Client, chance: random.Random) -> None:
        while part := list(islice(asks, chance.randint(1, 12))):
            # What is too large would end the stream.
            await client.stream([ask for ask in part if len(ask.raw) <= MAX_MESSAGE])
            for ask in part:
                if len(ask.raw) > MAX_MESSAGE:
                    await client.infer(ask)

    callers = [call(client) for client in clients for _ in range(AT_ONCE)]
    await asyncio.gather(*callers, *(stream(client, random.Random(n)) for n, client in enumerate(clients)))


# -- what has to wait -------------------------------------------------------------


class WaitingRoom:
    """A model whose only infer request is kept busy, so that whatever else comes waits until :meth:`clear`."""

    def __init__(self, daemon: Daemon, model: str, keeper: Client) -> None:
        self.model = model
        self._daemon = daemon
        self._keeper = keeper
        self._jam = self.ask(LONG)

    def ask(self, count: int = 0, **parameters: int) -> Ask:
        return Ask.of(steps(count, model=self.model, parameters=parameters))

    async def shows(self, name: str, value: int) -> None:
        """Return once the gauge says so."""
        await asyncio.to_thread(wait_until, self._daemon, name, self.model, value)

    async def has_turned_away(self, reason: str, number: int) -> None:
        """Return once so many were refused for ``reason``."""
        for _ in range(LOOKS):
            seen = await asyncio.to_thread(scrape, self._daemon)
            if seen.total("inferd_requests_total", model=self.model, reason=reason) == number:
                return
        pytest.fail(f"{number} were not turned away as {reason}")

    async def fill(self) -> None:
        self._running = self._keeper.start(self._jam)
        await self.shows(RUNS, 1)

    async def clear(self) -> None:
        assert not self._running.done()
        self._running.cancel()
        await self._keeper.end(self._jam, self._running)
        await self.shows(RUNS, 0)


class Crowd:
    """Requests of all ``clients`` to one model, in calls of their own and in streams: ``number`` of each client."""

    def __init__(self, clients: Sequence[Client], ask: Ask, number: int = CROWD) -> None:
        self._clients = clients
        self._ask = ask
        self._streamed = [ask] * min(STREAMED, number // 2)
        self._alone = number - len(self._streamed)
        self._calls: list[tuple[Client, Any]] = []
        self._streams: list[tuple[Client, Any]] = []

    async def come(self, patience: float | None = None) -> None:
        self._calls = [(c, c.start(self._ask, patience)) for c in self._clients for _ in range(self._alone)]
        self._streams = [(c, await c.open(self._streamed, patience)) for c in self._clients]

    async def go(self) -> None:
        """Hang up."""
        for _, call in (*self._calls, *self._streams):
            call.cancel()
        await self._ends(StatusCode.CANCELLED)

    async def give_up(self) -> None:
        """Wait for the deadline given to :meth:`come`."""
        await self._ends(StatusCode.DEADLINE_EXCEEDED)

    async def _ends(self, code: StatusCode) -> None:
        await asyncio.gather(
            *(client.end(self._ask, call) for client, call in self._calls),
            *(client.gone(self._streamed, call, code) for client, call in self._streams),
        )

    async def hear(self) -> None:
        """Wait for all answers."""
        await asyncio.gather(
            *(client.end(self._ask, call) for client, call in self._calls),
            *(client.close(self._streamed, call) for client, call in self._streams),
        )


async def fill_queue(room: WaitingRoom, clients: Sequence[Client], others: Sequence[Client]) -> None:
    """Cancelled, expired and refused while the run before them goes on."""
    await room.fill()
    cancelled = Crowd(clients, room.ask())
    await cancelled.come()
    await room.shows(LENGTH, QUEUE_LENGTH)
    await cancelled.go()
    await room.shows(LENGTH, 0)

    timed_out = Crowd(clients, room.ask(timeout=100_000))
    await timed_out.come()
    await timed_out.hear()

    waiting = Crowd(clients, room.ask())
    await waiting.come()
    await room.shows(LENGTH, QUEUE_LENGTH)
    over_quota, too_many = Crowd(clients, room.ask(), 20), Crowd(others, room.ask(), 50)
    for crowd in (over_quota, too_many):
        await crowd.come()
        await crowd.hear()
    urgent = Crowd(others, room.ask(priority=1), 20)
    await urgent.come()
    await room.has_turned_away("evicted", 20 * len(others))
    await room.clear()
    await asyncio.gather(waiting.hear(), urgent.hear())


async def running(room: WaitingRoom, client: Client, times: int = 3) -> None:
    """Cancelled and expired while they run themselves."""
    long = room.ask(LONG)
    for _ in range(times):
        call = client.start(long)
        await room.shows(RUNS, 1)
        call.cancel()
        await client.end(long, call)
        await room.shows(RUNS, 0)

        stream = await client.open([long])
        await room.shows(RUNS, 1)
        stream.cancel()
        await client.gone([long], stream, StatusCode.CANCELLED)
        await room.shows(RUNS, 0)

        await client.stream([room.ask(LONG, timeout=2_000_000)])
        await room.shows(RUNS, 0)


async def impatient(room: WaitingRoom, clients: Sequence[Client]) -> None:
    """Given up by clients whose own deadline passes: in the queue, and then the run before them too."""
    long = room.ask(LONG)
    call = clients[0].start(long, 2 * PATIENCE)
    await room.shows(RUNS, 1)
    waiting = Crowd(clients, room.ask(), 20)
    await waiting.come(PATIENCE)
    await room.shows(LENGTH, 20 * len(clients))
    await waiting.give_up()
    assert not call.done()
    await clients[0].end(long, call)
    await room.shows(RUNS, 0)


async def beyond_the_objective(room: WaitingRoom, clients: Sequence[Client]) -> None:
    """Refused because of what the run before them is known to take: once one has ended."""
    await clients[0].infer(room.ask(LONG // 10))
    await room.fill()
    refused = Crowd(clients, room.ask(), 20)
    await refused.come()
    await refused.hear()
    await room.clear()


# -- the tests --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Books:
    """The clients' and the server's."""

    tally: Tally
    series: Series


@pytest.fixture(scope="module")
def books(daemon: Daemon) -> Books:
    tally, chance = Tally(), random.Random(SEED)
    asks = (chance.choices(list(KINDS), list(KINDS.values()))[0](chance.randrange(1000)) for _ in count())

    async def talk() -> None:
        async with AsyncExitStack() as stack:

            async def client(name: str) -> Client:
                return Client(await stack.enter_async_context(connect(daemon.grpc)), name, tally)

            clients = [await client(f"client {number}") for number in range(CLIENTS)]
            others = [await client(f"other {number}") for number in range(2)]
            names = ("jammed", "held", IMPATIENT, "strict")
            jammed, held, hasty, strict = rooms = [WaitingRoom(daemon, name, others[0]) for name in names]

            async def wait() -> None:
                await fill_queue(jammed, clients, others)
                await running(held, others[0])
                await impatient(hasty, clients)
                await beyond_the_objective(strict, clients)

            await asyncio.gather(mixture(clients, islice(asks, REQUESTS * 8 // 10)), wait())
            await mixture(clients, islice(asks, REQUESTS - tally.ended.total()))
            for room in rooms:
                await room.shows(RUNS, 0)

    asyncio.run(talk())
    # What was never read is counted when gRPC lets go of it, after the client was told.
    for _ in range(LOOKS):
        series = scrape(daemon)
        if series.total(TOTAL) >= REQUESTS and not series.total("inferd_open_calls"):
            break
    return Books(tally, series)


def test_each_request_is_counted_once_under_what_became_of_it(books: Books, figure: Callable[[str], None]) -> None:
    ended, counted = books.tally.ended, books.series.by(TOTAL, "model", "outcome")
    assert ended.total() == books.series.total(TOTAL) == REQUESTS
    seen_to_leave = counted.pop((IMPATIENT, "cancelled"), 0)
    counted[IMPATIENT, "deadline"] = counted.get((IMPATIENT, "deadline"), 0) + seen_to_leave
    assert counted == ended
    by_outcome = Counter[str]()
    for (_, outcome), number in ended.items():
        by_outcome[outcome] += number
    assert set(by_outcome) == {*OUTCOMES.values(), ABORTED_RECEIVE}
    figure(f"counting: {', '.join(f'{n} {outcome}' for outcome, n in by_outcome.most_common())}; all counted so")


def test_what_is_refused_says_why(books: Books) -> None:
    counted = books.series.by(TOTAL, "model", "outcome", "reason")
    refused = {(model, reason): n for (model, outcome, reason), n in counted.items() if outcome == "overloaded"}
    assert refused == books.tally.refused
    assert {reason for _, reason in refused} == set(REASONS.values())


def test_what_ran_has_its_device_and_what_did_not_has_none(books: Books) -> None:
    counted = books.series.by(TOTAL, "model", "outcome", "device")
    assert {device for _, outcome, device in counted if outcome in ("ok", "internal")} == {"CPU"}
    never = ("invalid", "not_found", "unavailable", "overloaded", ABORTED_RECEIVE)
    assert {device for _, outcome, device in counted if outcome in never} == {""}
    assert {device for model, _, device in counted if model == "held"} == {"CPU"}
    assert {outcome for model, outcome, device in counted if model == "jammed" and not device} == {
        "cancelled",
        "deadline",
        "overloaded",
    }


def test_those_answered_well_are_timed_once_and_their_stages_are_all_of_their_time(books: Books) -> None:
    series = books.series
    answered = {(model,): n for (model, outcome), n in books.tally.ended.items() if outcome == "ok"}
    assert series.by("inferd_request_duration_seconds_count", "model") == answered
    assert series.by("inferd_stage_duration_seconds_count", "model", "stage") == {
        (*model, stage): n for model, n in answered.items() for stage in STAGES
    }
    whole = series.by("inferd_request_duration_seconds_sum", "model")
    assert series.by("inferd_stage_duration_seconds_sum", "model") == pytest.approx(whole, rel=1e-9)
    assert set(whole) == set(answered)


def test_bytes_and_rows_are_those_that_were_sent(books: Books) -> None:
    series, tally = books.series, books.tally
    assert by_model(series, "inferd_received_bytes_total") == tally.asked_bytes
    assert by_model(series, "inferd_sent_bytes_total") == tally.answer_bytes
    assert by_model(series, "inferd_inferences_total") == tally.rows
    # Rows that ran together, over all runs.
    assert by_model(series, "inferd_batch_rows_sum") == tally.rows
    runs = by_model(series, "inferd_batch_rows_count")
    assert runs.pop("rows") <= tally.ended["rows", "ok"]
    assert runs == {model: n for (model, outcome), n in tally.ended.items() if outcome == "ok" and model != "rows"}


def by_model(series: Series, name: str) -> dict[str, float]:
    return {model: value for (model,), value in series.by(name, "model").items()}


def test_an_answer_that_took_too_long_did_not_meet_the_objective(books: Books) -> None:
    assert books.tally.ended["strict", "ok"] == 1
    [met] = [value for (name, _), value in books.series.values.items() if name == "inferd_objective_met_total"]
    assert met == 0


def test_nothing_is_left_behind(books: Books) -> None:
    for gauge in (RUNS, LENGTH, "inferd_in_flight_requests", "inferd_queue_bytes", "inferd_queue_oldest_seconds"):
        assert books.series.by(gauge, "model") == {}
    assert books.series.total("inferd_open_calls") == 0


def test_no_name_that_a_client_made_up_became_a_label(books: Books) -> None:
    served = {"echo", "text", "rows", "picky", "jammed", "held", IMPATIENT, "strict", "broken"}
    assert books.series.models() == {*served, OTHER}
    values = {value for _, pairs in books.series.values for _, value in pairs}
    assert [value for value in values if "guess" in value] == []
    assert {dict(pairs)["version"] for name, pairs in books.series.values if name == TOTAL} == {"", "1"}
