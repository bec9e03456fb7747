"""Overload as clients see it: quotas, an objective, a full queue, and deadlines that pass in it."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from inferd.tensors import DType
from tests import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.gauges import gauge, wait_until
from tests.system.refusals import pushback
from tests.system.wire import OK, connect, counts, echo, method, outcome, request, steps

pytestmark = pytest.mark.system

QUOTA = 2
OBJECTIVE = 300
"""Milliseconds."""
BURST = 300
"""Requests whose runs take some ten milliseconds each: many times what the objective has room for."""
QUEUE_LENGTH = 3
LONG = 6000
"""Steps of a run that outlasts whatever is tried meanwhile; each test asserts that it did."""
TIMEOUT = 50_000
"""Microseconds."""

RUNS, LENGTH = "inferd_infer_requests_busy", "inferd_queue_length"
EXPIRED = "deadline passed while the request was waiting in the queue"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    """Each test has a model of its own, as its counts and what its runs took are looked at."""
    repository, serial = tmp_path_factory.mktemp("repository"), echo_models.serial(1024)
    objective = f"[objective]\nlatency_slo = {OBJECTIVE / 1000}\n"
    models.save(models.slow(20), repository, "promising", settings=serial + objective)
    untried = f"{serial}{objective}[warmup]\nruns = 0\n"
    models.save(echo_models.steps(), repository, "learning", settings=untried)
    models.save(echo_models.steps(), repository, "short", settings=echo_models.serial(QUEUE_LENGTH))
    models.save(echo_models.steps(), repository, "unary", settings=serial)
    models.save(echo_models.steps(), repository, "hasty", settings=f"{serial}default_timeout = {TIMEOUT / 1e6}\n")
    models.save(echo_models.steps(), repository, "streamed", settings=serial)
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


async def keep_busy(daemon: Daemon, infer: Any, model: str, **more: Any) -> grpc.aio.Call:
    """Return once a long run is in flight, as the daemon says; ``more`` goes to its call."""
    call = infer(steps(LONG, model=model, parameters={"timeout": 60_000_000}), **more)
    await asyncio.to_thread(wait_until, daemon, RUNS, model, 1)
    return call


async def lined_up(daemon: Daemon, model: str, number: int) -> None:
    """Return once so many wait in the queue."""
    await asyncio.to_thread(wait_until, daemon, LENGTH, model, number)


# -- quotas -----------------------------------------------------------------------


def save_models(repository: Path) -> Path:
    """`echo`, and models that run one request at a time; gives ``repository`` back."""
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")
    for name in ("named", "nameless"):
        models.save(echo_models.steps(), repository, name, settings=echo_models.serial(1024))
    return repository


@pytest.fixture(scope="module")
def rationed(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    """A daemon with a quota."""
    repository = save_models(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir), "--client-max-requests", str(QUOTA)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def named(client: str, key: str = "inferd-client") -> tuple[tuple[str, str], ...]:
    """Metadata of a client that says who it is."""
    return ((key, client),)


async def over_quota(call: grpc.aio.Call, model: str, whom: str) -> bool:
    """Whether ``call`` was refused because ``whom`` has all it may have, and told when to come back."""
    await pushback(call)
    return (await call.details()).startswith(f"model '{model}': {whom} may have {QUOTA} requests in flight; retry in ")


def test_a_client_at_its_quota_is_told_when_to_come_back_and_others_are_served(rationed: Daemon) -> None:
    async def talk() -> None:
        async with connect(rationed.grpc) as channel, connect(rationed.grpc) as another:
            infer, brief, greedy = method(channel, "ModelInfer"), steps(0, "brief", model="named"), named("greedy")
            in_front = await keep_busy(rationed, infer, "named", metadata=named("in front"))
            first = infer(brief, metadata=greedy)
            await lined_up(rationed, "named", 1)
            second = infer(steps(LONG, model="named"), metadata=greedy)
            await lined_up(rationed, "named", 2)

            # It counts who it is, not which connection it comes over or by which RPC.
            assert await over_quota(method(another, "ModelInfer")(brief, metadata=greedy), "named", "client 'greedy'")
            stream = method(another, "ModelStreamInfer")(metadata=greedy)
            await stream.write(brief)
            said = (await stream.read()).error_message
            assert said.startswith("[RESOURCE_EXHAUSTED] request 'brief': model 'named': client 'greedy' may have ")

            # Another model has a quota of its own, and so have others at this one: they even go first here.
            assert await outcome(infer(echo([1]), metadata=greedy)) == (OK, "")
            urgent = steps(0, model="named", parameters={"priority": 1})
            others = [infer(urgent, metadata=metadata) for metadata in (named("modest"), named("Greedy"), ())]
            await lined_up(rationed, "named", QUOTA + len(others))
            assert not in_front.done()
            assert [await call.code() for call in (in_front, *others)] == [OK] * (1 + len(others))

            # The first answer makes room for one more, over the stream as well, but not for two.
            assert await outcome(first) == (OK, "")
            await stream.write(brief)
            await lined_up(rationed, "named", 1)
            assert await over_quota(infer(brief, metadata=greedy), "named", "client 'greedy'")
            assert not second.done()
            assert await outcome(second) == (OK, "")
            answer = await stream.read()
            assert (answer.error_message, answer.infer_response.id) == ("", "brief")

    asyncio.run(talk())
    assert counts(rationed)["named", "overloaded"] == 3


def test_clients_that_give_no_identity_share_one_quota(rationed: Daemon) -> None:
    async def talk() -> None:
        async with connect(rationed.grpc) as one, connect(rationed.grpc) as two, connect(rationed.grpc) as three:
            brief, infer = steps(0, model="nameless"), method(three, "ModelInfer")
            in_front = await keep_busy(rationed, infer, "nameless")
            waiting = method(one, "ModelInfer")(brief)
            await lined_up(rationed, "nameless", 1)

            for metadata in ((), named(""), named("me", "client")):
                refused = method(two, "ModelInfer")(brief, metadata=metadata)
                assert await over_quota(refused, "nameless", "clients without an identity"), metadata
            named_one = method(two, "ModelInfer")(brief, metadata=named("me"))
            await lined_up(rationed, "nameless", 2)
            assert not in_front.done()

            assert [await call.code() for call in (in_front, waiting, named_one)] == [OK] * 3
            assert await outcome(infer(brief)) == (OK, "")

    asyncio.run(talk())


def test_another_metadata_key_may_name_the_client(tmp_path: Path, cache_dir: Path) -> None:
    async def talk(daemon: Daemon) -> None:
        async with connect(daemon.grpc) as channel:
            infer, brief, greedy = method(channel, "ModelInfer"), steps(0, model="named"), named("greedy", "x-tenant")
            calls = [await keep_busy(daemon, infer, "named", metadata=greedy), infer(brief, metadata=greedy)]
            await lined_up(daemon, "named", 1)

            assert await over_quota(infer(brief, metadata=greedy), "named", "client 'greedy'")
            # The usual key is like any other here: it names no client.
            calls += [infer(brief, metadata=others) for others in (named("modest", "x-tenant"), named("greedy"))]
            await lined_up(daemon, "named", 3)
            assert not calls[0].done()
            assert [await call.code() for call in calls] == [OK] * len(calls)

    flags = ("--client-max-requests", str(QUOTA), "--client-metadata-key", "x-tenant", "--cache-dir", str(cache_dir))
    with Daemon(save_models(tmp_path), *flags) as daemon:
        asyncio.run(talk(daemon))
        assert daemon.stop() == 0, daemon.log()


# -- a latency objective ----------------------------------------------------------

OVERLOADED = re.compile(
    rf"model '\w+': overloaded: a response would take (\d+) ms, the objective is {OBJECTIVE} ms; retry in \d+ ms"
)


def test_what_can_not_keep_the_objective_is_refused_while_the_run_before_it_goes_on(daemon: Daemon) -> None:
    async def talk() -> None:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            # How long runs take is known once one has ended. A request with none before it is always accepted.
            assert await (await keep_busy(daemon, infer, "learning")).code() is OK
            running = await keep_busy(daemon, infer, "learning")

            refused = infer(steps(0, model="learning"))
            assert OVERLOADED.fullmatch(await refused.details())
            await pushback(refused)
            assert not running.done()
            assert await running.code() is OK

    asyncio.run(talk())


def test_a_burst_beyond_the_objective_is_answered_or_refused_and_nothing_is_lost(
    daemon: Daemon, figure: Callable[[str], None]
) -> None:
    message = request("promising", {"x": np.ones(1, np.float32)})

    async def burst() -> tuple[Counter[StatusCode], list[int]]:
        ended, waits = Counter[StatusCode](), []
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            for call in [infer(message) for _ in range(BURST)]:
                ended[await call.code()] += 1
                if await call.code() is OK:
                    assert (await call).raw_output_contents[0] == message.raw_input_contents[0]
                else:
                    said = OVERLOADED.fullmatch(await call.details())
                    assert said is not None, await call.details()
                    # Never refused for what it could have: the budget does not fall below a tenth of the objective.
                    assert int(said[1]) >= OBJECTIVE // 10
                    waits.append(await pushback(call))
            # All are answered: nothing runs, nothing waits, and the next finds room.
            assert [gauge(daemon, name, "promising") for name in (RUNS, LENGTH)] == [0, 0]
            assert await infer(message).code() is OK
        return ended, waits

    ended, waits = asyncio.run(burst())

    assert set(ended) == {OK, StatusCode.RESOURCE_EXHAUSTED}
    assert ended.total() == BURST
    seen = {how: count for (model, how), count in counts(daemon).items() if model == "promising"}
    assert seen == {"ok": ended[OK] + 1, "overloaded": ended[StatusCode.RESOURCE_EXHAUSTED]}
    figure(
        f"overload: of {BURST} at once {ended[OK]} answered, {len(waits)} told to come back in {min(waits)}-"
        f"{max(waits)} ms; objective {OBJECTIVE} ms"
    )


# -- a full queue -----------------------------------------------------------------


def test_an_urgent_request_takes_the_place_of_the_latest_unprioritised_one(daemon: Daemon) -> None:
    async def talk() -> list[str]:
        async with connect(daemon.grpc) as channel:
            infer, ended = method(channel, "ModelInfer"), list[str]()

            def send(name: str, **parameters: int) -> grpc.aio.Call:
                # Long enough that a client sees responses in the order in which they were sent.
                call = infer(steps(10, name, model="short", parameters=parameters))
                call.add_done_callback(lambda _: ended.append(name))
                return call

            running = await keep_busy(daemon, infer, "short")
            running.add_done_callback(lambda _: ended.append("running"))
            waiting = []
            for place in range(1, QUEUE_LENGTH + 1):
                waiting.append(send(f"waiting {place}"))
                await lined_up(daemon, "short", place)

            refused = send("refused")
            full = f"model 'short': queue is full ({QUEUE_LENGTH} requests waiting); retry in "
            assert (await refused.details()).startswith(full)
            await pushback(refused)

            urgent = send("urgent", priority=1)
            evicted = "model 'short': queue is full and a request of higher priority arrived; retry in "
            assert (await waiting[-1].details()).startswith(evicted)
            await pushback(waiting[-1])
            assert gauge(daemon, LENGTH, "short") == QUEUE_LENGTH

            for call in (running, urgent, *waiting[:-1]):
                assert await outcome(call) == (OK, "")
            return ended

    ended = asyncio.run(talk())
    # Both were turned away while the long run went on, and the urgent one ran before those that had come first.
    first = ["refused", f"waiting {QUEUE_LENGTH}", "running", "urgent"]
    assert ended == first + [f"waiting {place}" for place in range(1, QUEUE_LENGTH)]
    assert counts(daemon)["short", "overloaded"] == 2


# -- deadlines that pass in the queue --------------------------------------------------


def test_a_request_that_expires_in_the_queue_is_answered_while_the_run_before_it_goes_on(daemon: Daemon) -> None:
    """The server says so, and not the client, which knows nothing of this deadline."""

    async def talk() -> None:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            for model, parameters in (("unary", {"timeout": TIMEOUT}), ("hasty", {})):
                running = await keep_busy(daemon, infer, model)
                late = infer(steps(0, model=model, parameters=parameters))
                assert await outcome(late) == (StatusCode.DEADLINE_EXCEEDED, f"model '{model}': {EXPIRED}")
                assert [gauge(daemon, name, model) for name in (RUNS, LENGTH)] == [1, 0]
                assert not running.done()
                assert await running.code() is OK

    asyncio.run(talk())


def test_what_expires_on_a_stream_is_told_while_the_run_before_it_goes_on(daemon: Daemon) -> None:
    """In request order only answers wait: those of an unordered stream need not."""

    async def talk() -> None:
        async with connect(daemon.grpc) as channel:
            stream = method(channel, "ModelStreamInfer")(metadata=(("inferd-unordered", "true"),))
            await stream.write(steps(LONG, "running", model="streamed"))
            await stream.write(steps(0, "late", model="streamed", parameters={"timeout": TIMEOUT}))
            late = await stream.read()
            assert late.error_message == f"[DEADLINE_EXCEEDED] request 'late': model 'streamed': {EXPIRED}"
            assert [gauge(daemon, name, "streamed") for name in (RUNS, LENGTH)] == [1, 0]
            answer = await stream.read()
            assert (answer.error_message, answer.infer_response.id) == ("", "running")

    asyncio.run(talk())
