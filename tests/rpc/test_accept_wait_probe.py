"""The calls that a server makes to itself wait like all others, and only the server sees them."""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from inferd.rpc.accept_wait_probe import AcceptWaitProbe
from inferd.scheduling.accept_wait import AcceptWait
from inferd.security.credentials import Credentials
from inferd.transport.call import ServerCall
from inferd.transport.http2 import Http2Connection, call_headers
from inferd.transport.server import GrpcServer
from tests.event_loop import on_loop, until
from tests.rpc.parts import Parts
from tests.rpc.test_authorisation import World, credentials, world

__all__ = ["world"]

MS = 1_000_000
HELD_UP = 50
"""Milliseconds for which the event loop is blocked."""

BEFORE, TURN = 20, 2
"""Calls before a probe, and milliseconds of the event loop that each takes."""


class Told(AcceptWait):
    """What the probes have reported; ``in_flight`` is set while one is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight = threading.Event()
        self.waits: list[int] = []

    def sent(self, now: int) -> None:
        super().sent(now)
        self.in_flight.set()

    def arrived(self, sent: int, now: int) -> int | None:
        self.in_flight.clear()
        waited = super().arrived(sent, now)
        assert waited is not None
        self.waits.append(waited)
        return waited

    def come(self, more: int = 1) -> "asyncio.Task[None]":
        """Returns once that many more have arrived."""
        have = len(self.waits)
        return asyncio.create_task(until(lambda: len(self.waits) >= have + more))


def _take(probe: AcceptWaitProbe, call: ServerCall) -> None:
    assert probe.takes(call.method, call)


@asynccontextmanager
async def probed(wait: AcceptWait, options: Sequence[tuple[str, int]] = ()) -> AsyncIterator[AcceptWaitProbe]:
    """A server with only an accept-wait probe, which believes that calls are open."""
    probe = AcceptWaitProbe(wait, lambda: True)
    server = GrpcServer(lambda call: _take(probe, call), options)
    probe.bind(server)
    server.start()
    probe.start()
    try:
        yield probe
    finally:
        probe.stop()
        await server.stop(0)


@on_loop
async def test_a_probe_has_waited_as_long_as_the_loop_was_blocked() -> None:
    wait = Told()
    async with probed(wait) as probe:
        await wait.come()
        coming = wait.come()
        wait.in_flight.wait()
        time.sleep(HELD_UP / 1000)  # noqa: ASYNC251 - nothing else runs meanwhile
        await coming
        assert wait.waits[-1] >= HELD_UP * MS
        assert sum(probe.waits.counts) == len(wait.waits)
        assert probe.waits.total == sum(wait.waits)


@on_loop
async def test_a_blocked_loop_is_noticed_while_it_is_blocked() -> None:
    wait = Told()
    async with probed(wait):
        await wait.come()
        while not wait.current:
            time.sleep(0.001)  # noqa: ASYNC251 - the loop stands still until then
        assert wait._in_flight


@on_loop
async def test_a_probe_waits_for_the_calls_queued_before_it() -> None:
    wait = Told()
    # Not started: the test decides when to send what.
    probe = AcceptWaitProbe(wait, lambda: True)

    def handle(call: ServerCall) -> None:
        if call.method == "/slow":
            time.sleep(TURN / 1000)
            call.respond(b"")
        else:
            _take(probe, call)

    server = GrpcServer(handle, [])
    probe.bind(server)
    server.start()
    # Over one connection, on which calls stay in order.
    connection = Http2Connection(probe._path)
    for _ in range(BEFORE):
        connection.call(call_headers("/slow"), b"")
    now = time.monotonic_ns()
    wait.sent(now)
    connection.call(call_headers(probe._method), now.to_bytes(8, "big"))
    await wait.come()
    assert wait.waits[0] >= BEFORE * TURN * MS
    connection.close()
    probe.stop()
    await server.stop(0)


@on_loop
async def test_a_connection_closed_by_the_server_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    closed = Http2Connection.close

    def close(self: Http2Connection) -> None:
        made.append(self)
        closed(self)

    monkeypatch.setattr(Http2Connection, "close", close)
    wait = Told()
    ages = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 100)]
    async with probed(wait, ages):
        await until(lambda: len(made) >= 2)
        await wait.come()


@on_loop
async def test_a_missing_socket_is_logged_once_and_everything_else_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with capture_logs() as logs:
        parts = Parts(tmp_path, {})
        port = parts.server.bind("127.0.0.1:0")
        await parts.server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"")
        await parts.server.stop(0)
    (said,) = [line for line in logs if line["event"] == "accept wait not measured"]
    assert said["problem"].startswith("no socket in TMPDIR: ")
    assert sum(parts.server.accept_waits.counts) == 0
    assert list(deep.iterdir()) == []


GATES = {
    "open": {},
    "tokens": {"tokens": True},
    "tls and tokens": {"tls": True, "tokens": True},
    "certificates of clients": {"tls": True, "verify": True},
}


@pytest.mark.parametrize("kind", GATES)
@on_loop
async def test_a_probe_passes_every_gate_and_counts_as_no_request(
    kind: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parts = Parts(tmp_path / "models", {}, credentials=credentials(world, **GATES[kind]))
    parts.server.bind("127.0.0.1:0")
    await parts.server.start()
    # Its socket has no name any more: nothing else finds it, and nothing is left of it.
    assert parts.server._accept_wait_probe._path.startswith("/proc/self/fd/")
    assert [entry for entry in os.listdir(tmp_path) if entry.startswith("inferd-")] == []
    await until(lambda: sum(parts.server.accept_waits.counts) >= 2)
    await parts.server.stop(0)
    assert parts.seen == []
    assert parts.inference.open_calls == 0


@on_loop
async def test_no_client_finds_the_method(tmp_path: Path) -> None:
    parts = Parts(tmp_path, {}, credentials=Credentials())
    port = parts.server.bind("127.0.0.1:0")
    await parts.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in (
            "/inferd.AcceptWaitProbe/",
            "/inferd.AcceptWaitProbe/" + 32 * "0",
            "/inferd.AcceptWaitProbe/Probe",
        ):
            call = channel.unary_stream(method)(b"")
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    await parts.server.stop(0)


@on_loop
async def test_a_foreign_probe_changes_nothing() -> None:
    wait = Told()
    async with probed(wait) as probe:
        await wait.come()
        connection = Http2Connection(probe._path)
        connection.call(call_headers(probe._method), b"no stamp")
        await wait.come(3)
        connection.read()
        connection.close()
        assert sum(probe.waits.counts) == len(wait.waits)


@on_loop
async def test_stopping_waits_for_no_probe(tmp_path: Path) -> None:
    parts = Parts(tmp_path, {})
    parts.server.bind("127.0.0.1:0")
    await parts.server.start()
    probe = parts.server._accept_wait_probe
    await until(lambda: sum(probe.waits.counts) >= 1)
    while not probe._wait._in_flight:
        time.sleep(0.001)  # noqa: ASYNC251 - the loop stands still, so that it does not arrive
    await asyncio.wait_for(parts.server.stop(600), 20)
    await parts.server.stop(0)
    assert not probe._thread.is_alive()
