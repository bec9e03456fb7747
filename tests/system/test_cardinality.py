"""The operator determines the number of series: neither text from clients nor unloaded models add any."""

import asyncio
import random
import re
import string
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from inferd.metrics.instruments import OTHER
from inferd.tensors import DType
from tests import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.gauges import wait_until
from tests.system.series import Labels, Series, scrape
from tests.system.wire import OK, connect, echo, method, outcome, steps

pytestmark = pytest.mark.system

GUESSES = 10_000
AT_ONCE = 100
"""Requests that a stream carries."""
SCRAPES = 3
"""Looks at what is to stay as it is."""
ROUNDS = 3

TOTAL, RUNS, LENGTH = "inferd_requests_total", "inferd_infer_requests_busy", "inferd_queue_length"

Names = set[tuple[str, Labels]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def daemon(repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    """A test that changes what is served has a model of its own for it; no probe makes a device busy between."""
    for name in ("echo", "coming", "renewed"):
        models.save(models.identity(DType.INT64, [-1]), repository, name)
    models.save(echo_models.steps(), repository, "leaving", settings=echo_models.serial(16))
    flags = ("--cache-dir", str(cache_dir), "--repository-control", "--request-log", "off", "--probe-interval", "0")
    with Daemon(repository, *flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def talk(daemon: Daemon, say: Callable[[Any], Any]) -> Any:
    """What ``say`` gives for a channel to the daemon."""

    async def connected() -> Any:
        async with connect(daemon.grpc) as channel:
            return await say(channel)

    return asyncio.run(connected())


# -- what clients make up ---------------------------------------------------------


def guess(chance: random.Random) -> str:
    return "guess-" + "".join(chance.choices(string.printable + "äß€🙂", k=chance.randint(1, 40)))


def guesses(number: int, seed: int) -> list[pb.ModelInferRequest]:
    """Requests with random text wherever a client may put any, in turn for an unknown model and an unknown version."""
    chance = random.Random(seed)
    made = []
    for place in range(number):
        message = echo([1], guess(chance), version=guess(chance))
        if place % 2:
            message.model_name = guess(chance)
        message.parameters[guess(chance)].string_param = guess(chance)
        message.inputs[0].name = guess(chance)
        made.append(message)
    return made


async def not_found(channel: Any, messages: list[pb.ModelInferRequest]) -> None:
    """Ask for all of ``messages``, of which none can be answered."""
    for start in range(0, len(messages), AT_ONCE):
        call = method(channel, "ModelStreamInfer")(metadata=(("inferd-client", f"guess-{start}"),))
        for message in messages[start : start + AT_ONCE]:
            await call.write(message)
        await call.done_writing()
        async for answer in call:
            assert answer.error_message.startswith("[NOT_FOUND]"), answer


def test_ten_thousand_made_up_names_leave_no_trace(daemon: Daemon, figure: Callable[[str], None]) -> None:
    talk(daemon, lambda channel: not_found(channel, guesses(2, seed=0)))
    before = scrape(daemon)
    messages = guesses(GUESSES, seed=1)
    talk(daemon, lambda channel: not_found(channel, messages))
    after = scrape(daemon)

    assert after.total(TOTAL, model=OTHER) - before.total(TOTAL, model=OTHER) == GUESSES / 2
    assert after.total(TOTAL, model="echo") - before.total(TOTAL, model="echo") == GUESSES / 2
    assert set(after.values) == set(before.values)
    assert "guess" not in daemon.get("/metrics")[1]
    figure(f"cardinality: {len(before.values)} series before and after {GUESSES} made-up names")


# -- what comes and goes ----------------------------------------------------------


async def change(channel: Any, what: str, model: str) -> None:
    """Load or unload."""
    asked = getattr(pb, f"RepositoryModel{what}Request")(model_name=model)
    assert await outcome(method(channel, f"RepositoryModel{what}")(asked)) == (OK, "")


async def ask(channel: Any, model: str, version: str = "") -> StatusCode:
    message = echo([1], version=version)
    message.model_name = model
    return await method(channel, "ModelInfer")(message).code()


def shape(series: Series, model: str, version: str) -> Names:
    """The series of ``version``, without that label; whether it came from the cache of compiled models may differ."""
    return {
        (name, tuple(pair for pair in pairs if pair[0] not in ("version", "from_cache")))
        for name, pairs in series.having(model=model, version=version)
    }


COUNTERS = re.compile(r"inferd_.*_(total|bucket|count|sum)")


class Watch:
    """Scrapes as often as it can while it is entered, and notes in ``seen`` whether a version has any gauge, and in
    ``fell`` which of its counters have ever fallen or gone."""

    def __init__(self, daemon: Daemon, model: str, version: str) -> None:
        self._daemon, self._labels = daemon, {"model": model, "version": version}
        self.seen: list[bool] = []
        self.fell: list[object] = []
        self.failure: BaseException | None = None
        self._over = Event()
        self._thread = Thread(target=self._watch, name="watch", daemon=True)

    def _watch(self) -> None:
        last: dict[object, float] = {}
        try:
            while not self._over.is_set():
                series = scrape(self._daemon)
                having = series.having(**self._labels)
                self.seen.append(bool(gauges(having)))
                now = {one: series.values[one] for one in having - gauges(having)}
                self.fell += [one for one, value in last.items() if now.get(one, -1.0) < value]
                last = {**last, **now}
        except BaseException as failure:
            self.failure = failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def phases(self) -> list[bool]:
        """What was seen, repetitions left out."""
        assert self.failure is None, self.failure
        return [there for there, _ in groupby(self.seen)]


def gauges(series: Names) -> Names:
    """Those of ``series`` that are none of what only rises."""
    return {one for one in series if not COUNTERS.fullmatch(one[0])}


def counted(series: Series, model: str, version: str) -> dict[object, float]:
    """All that only rises of ``version``."""
    having = series.having(model=model, version=version)
    return {one: series.values[one] for one in having - gauges(having)}


def test_gauges_of_a_model_go_when_it_is_unloaded_and_its_counters_go_on_when_it_is_loaded(daemon: Daemon) -> None:
    async def rounds(channel: Any) -> None:
        assert await ask(channel, "coming") is OK
        # One that is refused in the model's name, before it is unloaded and after.
        assert await ask(channel, "coming", "7") is StatusCode.NOT_FOUND
        whole = shape(scrape(daemon), "coming", "1")
        assert {TOTAL, RUNS, "inferd_request_duration_seconds_bucket", "inferd_model_ready"} <= {n for n, _ in whole}
        for number in range(ROUNDS):
            before = counted(scrape(daemon), "coming", "1")
            await change(channel, "Unload", "coming")
            for _ in range(SCRAPES):
                assert await ask(channel, "coming") is StatusCode.UNAVAILABLE
                left = await asyncio.to_thread(scrape, daemon)
                assert gauges(left.having(model="coming", version="1")) == set()
                assert counted(left, "coming", "1") == before
            await change(channel, "Load", "coming")
            for _ in range(SCRAPES):
                loaded = await asyncio.to_thread(scrape, daemon)
                assert loaded.total(TOTAL, model="coming", version="1") == number + 1
                assert shape(loaded, "coming", "1") == whole
            assert await ask(channel, "coming") is OK
            assert shape(scrape(daemon), "coming", "1") == whole

    with Watch(daemon, "coming", "1") as watch:
        talk(daemon, rounds)
    assert watch.phases == [True, False] * ROUNDS + [True]
    assert watch.fell == []


def test_gauges_of_a_version_go_when_a_newer_one_takes_its_place(daemon: Daemon, repository: Path) -> None:
    async def renew(channel: Any) -> None:
        assert await ask(channel, "renewed") is OK
        old = scrape(daemon)
        models.save(models.identity(DType.INT64, [-1]), repository, "renewed", 2)
        await change(channel, "Load", "renewed")
        assert await ask(channel, "renewed") is OK
        assert await ask(channel, "renewed", "1") is StatusCode.NOT_FOUND
        for _ in range(SCRAPES):
            new = await asyncio.to_thread(scrape, daemon)
            assert gauges(new.having(model="renewed", version="1")) == set()
            assert new.total(TOTAL, model="renewed", version="1") == 1
            assert shape(new, "renewed", "2") == shape(old, "renewed", "1")
            assert new.total(TOTAL, model="renewed", version="2") == 1

    with Watch(daemon, "renewed", "1") as watch:
        talk(daemon, renew)
    assert watch.phases == [True, False]
    assert watch.fell == []


def test_a_model_that_is_unloaded_answers_first_and_all_of_that_is_counted(daemon: Daemon) -> None:
    async def leave(channel: Any) -> None:
        infer = method(channel, "ModelInfer")
        running = infer(steps(1000, model="leaving"))
        await asyncio.to_thread(wait_until, daemon, RUNS, "leaving", 1)
        waiting = [infer(steps(0, model="leaving")) for _ in range(4)]
        given_up = infer(steps(0, model="leaving"))
        await asyncio.to_thread(wait_until, daemon, LENGTH, "leaving", 5)
        unloaded = asyncio.create_task(change(channel, "Unload", "leaving"))
        given_up.cancel()
        assert [await call.code() for call in (running, *waiting)] == [OK] * 5
        await unloaded
        for _ in range(SCRAPES):
            assert await infer(steps(0, model="leaving")).code() is StatusCode.UNAVAILABLE
            left = await asyncio.to_thread(scrape, daemon)
            assert gauges(left.having(model="leaving", version="1")) == set()
            assert left.total(TOTAL, model="leaving", version="1", outcome="ok") == 5
            assert left.total(TOTAL, model="leaving", version="1", outcome="cancelled") == 1

    with Watch(daemon, "leaving", "1") as watch:
        talk(daemon, leave)
    assert watch.phases == [True, False]
    assert watch.fell == []


# -- where no grace is wanted ------------------------------


def test_without_a_grace_a_model_that_is_unloaded_leaves_no_series(tmp_path: Path, cache_dir: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "coming")

    async def unload(channel: Any) -> None:
        assert await ask(channel, "coming") is OK
        await change(channel, "Unload", "coming")
        for _ in range(SCRAPES):
            assert (await asyncio.to_thread(scrape, daemon)).having(model="coming") == set()

    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--repository-control", "--metrics-retention", "0") as daemon:
        talk(daemon, unload)
