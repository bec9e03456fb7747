"""Several workers with TLS and tokens: whichever of them a connection is with, it is as guarded as one process."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc.gate import PRINCIPAL_KEY, SECRET_KEY
from tests.certificates import Pair
from tests.shared_memory.objects import shared_object
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.test_security import Operator, new_token
from tests.system.test_workers import counted, identity, pids, says
from tests.system.wire import OK, connect, echo, method

pytestmark = pytest.mark.system

PATIENCE = 60.0
WORKERS = 2
CONNECTIONS = 200
"""Bounds how many are opened until each worker has one: one in 2**200 runs would not do."""
SUPERVISOR = -1

UNKNOWN = "x" * 40
NOT_IN, NOT_ALLOWED = StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="module")
def daemon(operator: Operator, cache_dir: Path) -> Iterator[Daemon]:
    flags = ("--workers", str(WORKERS), "--cache-dir", str(cache_dir), "--repository-control", "--preflight", "off")
    flags = (*flags, "--shared-memory", "copy")
    with Daemon(operator.repository, *flags, *operator.flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


class Caller:
    """Calls over TLS, on new connections, with the secrets of an ``operator`` and the certificate ``pair``."""

    def __init__(self, operator: Operator, daemon: Daemon, pair: Pair | None = None) -> None:
        self._operator, self._daemon = operator, daemon
        ca, key, certificate = operator.shown("", pair).pem()
        self._tls = grpc.ssl_channel_credentials(ca, key, certificate)

    def _metadata(self, who: str) -> tuple[tuple[str, str], ...]:
        secret = self._operator.secrets.get(who, who)
        return (("authorization", f"Bearer {secret}"),) if secret else ()

    async def call(self, who: str, name: str, message: Any) -> StatusCode:
        """How the call ends for the token of the scope ``who``, or with it as the secret; empty shows none."""
        async with connect(self._daemon.grpc, self._tls) as channel:
            return await method(channel, name)(message, metadata=self._metadata(who)).code()

    async def infer_of_all(self, *callers: str) -> tuple[set[tuple[StatusCode, ...]], int]:
        """How inferences of ``callers``, one after the other on one connection, end: all that was seen on new
        connections until each worker had had one, and how many connections that were."""
        before = [answered(pid) for pid in pids(self._daemon).values()]
        seen: set[tuple[StatusCode, ...]] = set()
        for number in range(1, CONNECTIONS):
            async with connect(self._daemon.grpc, self._tls) as channel:
                infer = method(channel, "ModelInfer")
                codes = [await infer(echo([1]), metadata=self._metadata(who)).code() for who in callers]
            seen.add(tuple(codes))
            now = [answered(pid) for pid in pids(self._daemon).values()]
            if all(b > a for a, b in zip(before, now, strict=True)):
                return seen, number
        raise AssertionError(f"not every worker was asked\n{self._daemon.log()}")


@pytest.fixture
def caller(operator: Operator, daemon: Daemon) -> Caller:
    return Caller(operator, daemon)


def answered(pid: int) -> int:
    """How many inferences the worker has told the ends of."""
    return counted(says(pid)).total()


def refused(operator: Operator, daemon: Daemon) -> Counter[tuple[str, ...]]:
    """Calls refused for their credentials so far, by port and reason; as all processes together say."""
    series = operator.series(daemon)
    return Counter({name[1:]: int(n) for name, n in series.items() if name[0] == "inferd_refused_calls_total"})


def new_credentials_are_used(daemon: Daemon, kind: str) -> Collection[int]:
    """By which processes, so far."""
    events = daemon.events("credentials reloaded")
    return {event.get("worker", SUPERVISOR) for event in events if event["kind"] == kind}


def test_every_worker_wants_a_token(daemon: Daemon, caller: Caller, operator: Operator) -> None:
    before, before_of_all = [counted(says(pid)) for pid in pids(daemon).values()], refused(operator, daemon)
    seen, connections = asyncio.run(caller.infer_of_all("infer", "", UNKNOWN, "read"))
    assert seen == {(OK, NOT_IN, NOT_IN, NOT_ALLOWED)}
    parts = [counted(says(pid)) - so_far for pid, so_far in zip(pids(daemon).values(), before, strict=True)]
    # What was refused was refused by the worker that the connection was with, and by no other.
    ok = [part["echo", "ok"] for part in parts]
    assert all(ok)
    assert sum(ok) == connections
    assert [part["_OTHER", "unauthenticated"] for part in parts] == [2 * n for n in ok]
    assert [part["_OTHER", "denied"] for part in parts] == ok
    risen = refused(operator, daemon) - before_of_all
    assert risen == {("grpc", reason): connections for reason in ("missing", "unknown", "scope")}


def test_no_worker_speaks_in_the_clear(daemon: Daemon) -> None:
    async def call() -> StatusCode:
        async with connect(daemon.grpc) as channel:
            return await method(channel, "ServerLive")(pb.ServerLiveRequest()).code()

    # Each time by whichever worker it is.
    assert {asyncio.run(call()) for _ in range(8)} == {StatusCode.UNAVAILABLE}


def test_the_socket_between_workers_lets_nobody_in_by_itself(daemon: Daemon, operator: Operator) -> None:
    """In the clear, as only this user reaches it; and the gate stands in front of it as well."""
    load = pb.RepositoryModelLoadRequest(model_name="echo")

    async def call(path: Path, *metadata: tuple[str, str]) -> StatusCode:
        async with connect(f"unix:{path}") as channel:
            return await method(channel, "RepositoryModelLoad")(load, metadata=metadata).code()

    guessed = ((SECRET_KEY, "guessed"), (PRINCIPAL_KEY, "repository"))
    scoped = ("authorization", f"Bearer {operator.secrets['infer']}")
    for pid in pids(daemon).values():
        socket = identity(pid).socket("grpc")
        assert socket.parent.stat().st_mode & 0o077 == 0
        assert [asyncio.run(call(socket, *shown)) for shown in ((), guessed, (scoped,))] == [
            NOT_IN,
            NOT_IN,
            NOT_ALLOWED,
        ]


def test_load_and_unload_are_for_who_may_and_reach_every_worker(caller: Caller) -> None:
    def told(who: str, name: str) -> StatusCode:
        kind: Any = {"Load": pb.RepositoryModelLoadRequest, "Unload": pb.RepositoryModelUnloadRequest}[name]
        return asyncio.run(caller.call(who, f"RepositoryModel{name}", kind(model_name="echo")))

    def served() -> set[tuple[StatusCode, ...]]:
        return asyncio.run(caller.infer_of_all("infer"))[0]

    refused = [told(who, name) for name in ("Load", "Unload") for who in ("infer", "")]
    assert refused == [NOT_ALLOWED, NOT_IN] * 2
    assert served() == {(OK,)}
    assert told("repository", "Unload") is OK
    assert served() == {(StatusCode.UNAVAILABLE,)}
    assert told("repository", "Load") is OK
    assert served() == {(OK,)}


def test_shared_memory_is_registered_with_every_worker_for_who_has_the_key(caller: Caller) -> None:
    def registered(key: str) -> StatusCode:
        asked = pb.SystemSharedMemoryRegisterRequest(name=key, key=key, byte_size=8)
        return asyncio.run(caller.call("infer", "SystemSharedMemoryRegister", asked))

    with shared_object(8, owner="infer") as own, shared_object(8, owner="read") as other:
        assert [registered(made.name) for made in (own, other)] == [OK, NOT_ALLOWED]
        asked = pb.SystemSharedMemoryUnregisterRequest(name=own.name)
        assert asyncio.run(caller.call("infer", "SystemSharedMemoryUnregister", asked)) is OK


def test_the_metrics_port_is_guarded_and_merges(daemon: Daemon, operator: Operator) -> None:
    before = refused(operator, daemon)
    paths = ("/metrics", "/status.json", "/", "/healthz", "/readyz")
    assert [operator.get(daemon, path)[0] for path in paths] == [401, 401, 401, 200, 200]
    assert [operator.get(daemon, path, operator.secrets["infer"])[0] for path in paths] == [403, 403, 403, 200, 200]
    assert [operator.get(daemon, path, operator.secrets["read"])[0] for path in paths] == [200] * 5
    # These are the supervisor's, beside those of the workers.
    assert refused(operator, daemon) - before == {("metrics", "missing"): 3, ("metrics", "scope"): 3}
    series, parts = operator.series(daemon), [counted(says(pid)) for pid in pids(daemon).values()]
    assert series["inferd_requests_total", "CPU", "echo", "ok", "", "1"] == sum(part["echo", "ok"] for part in parts)
    assert series[("inferd_workers",)] == series[("inferd_workers_ready",)] == WORKERS
    # Of these each process has one, and the whole has one.
    assert series["inferd_credentials_current", "tokens"] == series["inferd_credentials_current", "certificate"] == 1
    assert series[("inferd_tls_certificate_expiry_timestamp_seconds",)] > 0
    models = json.loads(operator.get(daemon, "/status.json", operator.secrets["read"])[1])["models"]
    assert [model["model"] for model in models] == ["echo"]


def test_certificate_and_tokens_change_in_every_process(daemon: Daemon, caller: Caller, operator: Operator) -> None:
    line, secret = new_token("later", "infer")
    assert asyncio.run(caller.infer_of_all("infer", secret))[0] == {(OK, NOT_IN)}
    operator.issue("second")
    operator.tokens.write_text(line + operator.lines)
    daemon.process.send_signal(signal.SIGHUP)
    everyone = {SUPERVISOR, *range(WORKERS)}
    for kind in ("certificate", "tokens"):
        until(lambda kind=kind: new_credentials_are_used(daemon, kind) == everyone, PATIENCE, daemon.log)
    assert asyncio.run(caller.infer_of_all("infer", secret))[0] == {(OK, OK)}
    assert operator.certificate_of(daemon.metrics, "http/1.1") == "second"
    assert {operator.certificate_of(daemon.grpc, "h2") for _ in range(8)} == {"second"}
    assert secret not in daemon.log()


def test_who_is_known_by_a_certificate_is_heard_by_every_worker(
    operator: Operator, cache_dir: Path, tmp_path: Path
) -> None:
    """Though the workers show each other none."""
    tokens = tmp_path / "tokens.toml"
    scopes = {"batch.example": ["infer", "repository"], "other.example": ["infer"]}
    tokens.write_text("".join(f'[[client]]\nname = "{who}"\nscopes = {may}\n' for who, may in scopes.items()))
    flags = ["--workers", str(WORKERS), "--cache-dir", str(cache_dir), "--repository-control", "--preflight", "off"]
    flags += [*operator.flags[:4], "--tokens-file", str(tokens), "--tls-client-ca", str(operator.authority.certificate)]
    batch, other = (operator.authority.issue(who, f"DNS:{who}") for who in scopes)

    with Daemon(operator.repository, *flags) as daemon:
        known, less, none = (Caller(operator, daemon, pair) for pair in (batch, other, None))
        unload = pb.RepositoryModelUnloadRequest(model_name="echo")
        told = [
            asyncio.run(one.call("", "RepositoryModelUnload", unload))  # by their certificates alone
            for one in (none, less, known)
        ]
        assert told == [StatusCode.UNAVAILABLE, NOT_ALLOWED, OK]
        assert asyncio.run(less.infer_of_all(""))[0] == {(StatusCode.UNAVAILABLE,)}
    assert daemon.stop() == 0, daemon.log()
