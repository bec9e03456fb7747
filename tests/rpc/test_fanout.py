"""A call that changes a server is passed on to the other workers, and only by admitted callers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import ModelUnavailable, UnknownModel
from inferd.rpc.call_tasks import CallTasks
from inferd.rpc.fanout import FANOUT_SCOPES, FanoutScope, WorkerFanout
from inferd.rpc.gate import ACCESS, PRINCIPAL_KEY, SECRET_KEY, SERVICE, TUNER_SERVICE, Access, Gate
from inferd.transport.call import ServerCall
from inferd.transport.server import GrpcServer
from inferd.workers.worker_identity import WorkerIdentity
from tests.event_loop import run as run_loop

LOAD, TUNE, LIVE = f"/{SERVICE}/RepositoryModelLoad", f"/{TUNER_SERVICE}/Tune", f"/{SERVICE}/ServerLive"
STATISTICS = f"/{SERVICE}/ModelStatistics"

NO_MEMORY, NO_MODEL = ModelUnavailable("m", "unavailable", "no memory"), UnknownModel("m")


class Worker:
    """Answers three methods with its number, and records requests and callers. Its flags are ``opened``."""

    def __init__(
        self, identity: WorkerIdentity, opened: Collection[Access] = (Access.REPOSITORY, Access.TUNER)
    ) -> None:
        self.identity = identity
        self.asked: list[tuple[bytes, str]] = []
        self.fails = False
        self.index = pb.RepositoryIndexResponse()
        self.statistics = pb.ModelStatisticsResponse()
        self.fanout = fanout = WorkerFanout(identity)
        self._gate = Gate(enabled=opened, secret=identity.secret)
        tasks, answers = CallTasks(), {LOAD: self._answer, LIVE: self._answer, TUNE: self._answer}
        answers |= {f"/{SERVICE}/RepositoryIndex": self._index, STATISTICS: self._statistics}
        self._handlers = {method: tasks.unary(fanout.wrap(method, answer)) for method, answer in answers.items()}
        self._server = GrpcServer(self._handle, [])
        self._server.listen(fanout.address)
        self.port = self._server.listen("127.0.0.1:0")

    def _handle(self, call: ServerCall) -> None:
        if self._gate.admits(call):
            self._handlers[call.method](call)

    async def __aenter__(self) -> "Worker":
        self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)

    async def _answer(self, raw: bytes, call: ServerCall) -> bytes:
        self.asked.append((raw, call.principal))
        if self.fails:
            raise NO_MEMORY
        return str(self.identity.index).encode()

    async def _index(self, _: bytes, __: ServerCall) -> bytes:
        return self.index.SerializeToString()

    async def _statistics(self, _: bytes, __: ServerCall) -> bytes:
        if self.fails:
            raise NO_MODEL
        return self.statistics.SerializeToString()

    async def call(self, method: str, raw: bytes = b"", **metadata: str) -> tuple[StatusCode, str]:
        """A call from outside: its code, and the response or the message."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            call = channel.unary_unary(method)(raw, metadata=tuple(metadata.items()))
            code = await call.code()
            return code, (await call).decode() if code is StatusCode.OK else await call.details()


@asynccontextmanager
async def workers(folder: Path, count: int = 3) -> AsyncIterator[list[Worker]]:
    secret = WorkerIdentity(0, count, folder).secret
    made = [Worker(WorkerIdentity(index, count, folder, secret)) for index in range(count)]
    for worker in made:
        await worker.__aenter__()
    try:
        yield made
    finally:
        for worker in made:
            await worker.__aexit__()


def run(folder: Path, test: Callable[[list[Worker]], Awaitable[None]]) -> None:
    async def within() -> None:
        async with workers(folder) as made:
            await test(made)

    run_loop(asyncio.wait_for(within(), 60))


def test_a_change_for_all_workers_reaches_each_once(tmp_path: Path) -> None:
    async def test(made: list[Worker]) -> None:
        assert await made[1].call(LOAD, b"model") == (StatusCode.OK, "1")
        assert [worker.asked for worker in made] == [[(b"model", "")]] * 3

    run(tmp_path, test)


def test_a_single_action_is_done_by_the_first_worker(tmp_path: Path) -> None:
    async def test(made: list[Worker]) -> None:
        assert [await worker.call(TUNE, b"model") for worker in made] == [(StatusCode.OK, "0")] * 3
        assert [len(worker.asked) for worker in made] == [3, 0, 0]

    run(tmp_path, test)


def test_all_other_calls_stay_on_their_worker(tmp_path: Path) -> None:
    async def test(made: list[Worker]) -> None:
        assert await made[2].call(LIVE) == (StatusCode.OK, "2")
        assert [len(worker.asked) for worker in made] == [0, 0, 1]

    run(tmp_path, test)


def test_a_failing_worker_fails_the_call_after_all_were_asked(tmp_path: Path) -> None:
    async def test(made: list[Worker]) -> None:
        made[0].fails = True
        assert await made[2].call(LOAD) == (StatusCode.UNAVAILABLE, f"worker 0: {NO_MEMORY}")
        assert [len(worker.asked) for worker in made] == [1, 1, 1]
        assert await made[0].call(LOAD) == (StatusCode.UNAVAILABLE, str(NO_MEMORY))
        assert [len(worker.asked) for worker in made] == [2, 1, 1]

    run(tmp_path, test)


def test_a_worker_that_does_not_serve_is_skipped_unless_only_it_could_answer(tmp_path: Path) -> None:
    async def test(made: list[Worker]) -> None:
        await made[0].__aexit__()
        assert await made[1].call(LOAD) == (StatusCode.OK, "1")
        code, why = await made[1].call(TUNE)
        assert (code, why) == (StatusCode.UNAVAILABLE, "worker 0: not serving")

    run(tmp_path, test)


def test_a_caller_without_the_secret_is_an_ordinary_client(tmp_path: Path) -> None:
    async def test(made: list[Worker]) -> None:
        shown = {SECRET_KEY: made[1].identity.secret, PRINCIPAL_KEY: "somebody"}
        assert await made[0].call(LOAD, **shown) == (StatusCode.OK, "0")
        assert [worker.asked for worker in made] == [[(b"", "somebody")], [], []]
        assert await made[0].call(LOAD, **shown | {SECRET_KEY: "guessed"}) == (StatusCode.OK, "0")
        assert [worker.asked[-1:] for worker in made] == [[(b"", "")]] * 3

    run(tmp_path, test)


def test_a_call_admitted_by_another_worker_is_admitted(tmp_path: Path) -> None:
    async def test() -> None:
        identity = WorkerIdentity(0, 1, tmp_path)
        async with Worker(identity, opened=()) as closed:
            assert (await closed.call(LOAD))[0] is StatusCode.PERMISSION_DENIED
            assert (await closed.call(LOAD, **{SECRET_KEY: "guessed"}))[0] is StatusCode.PERMISSION_DENIED
            assert (await closed.call(LOAD, **{SECRET_KEY: identity.secret}))[0] is StatusCode.OK

    run_loop(asyncio.wait_for(test(), 60))


def test_the_worker_that_is_asked_sums_the_counts_of_all(tmp_path: Path) -> None:
    async def ask(worker: Worker) -> int:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{worker.port}") as channel:
            answer = await channel.unary_unary(STATISTICS)(b"")
        (one,) = pb.ModelStatisticsResponse.FromString(answer).model_stats
        return int(one.inference_count)

    async def test(made: list[Worker]) -> None:
        for number, worker in enumerate(made, 1):
            worker.statistics.model_stats.add(name="m", version="1", inference_count=number)
        assert [await ask(worker) for worker in made] == [6, 6, 6]
        # A worker without the model, or one that has ended, adds nothing; the worker that is asked always answers.
        made[0].fails = True
        assert await ask(made[1]) == 5
        assert await made[0].call(STATISTICS) == (StatusCode.NOT_FOUND, str(NO_MODEL))
        await made[2].__aexit__()
        assert await ask(made[1]) == 2

    run(tmp_path, test)


def test_a_starting_worker_learns_what_the_others_have_unloaded(tmp_path: Path) -> None:
    async def test(made: list[Worker]) -> None:
        assert await made[1].fanout.unloaded() == set()
        for name, version, reason in (("gone", "1", "unloaded"), ("half", "1", "unloaded"), ("half", "2", "")):
            made[0].index.models.add(name=name, version=version, reason=reason)
        assert await made[1].fanout.unloaded() == {"gone"}
        for worker in (made[0], made[2]):
            await worker.__aexit__()
        assert await made[1].fanout.unloaded() == set()

    run(tmp_path, test)


@pytest.mark.parametrize("method", sorted(FANOUT_SCOPES))
def test_only_calls_that_the_gate_knows_are_passed_on(method: str) -> None:
    assert method in ACCESS
    if ACCESS[method] is Access.REPOSITORY:
        assert FANOUT_SCOPES[method] is FanoutScope.EVERY
