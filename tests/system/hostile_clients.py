"""Hostile clients, on raw sockets where grpc is too polite: many connections, slow ones, garbage."""

import asyncio
import resource
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Types and flags of HTTP/2 frames, RFC 9113.
DATA, HEADERS, SETTINGS, CONTINUATION = 0x0, 0x1, 0x4, 0x9
ACK, END_HEADERS = 0x1, 0x4


class Connection(asyncio.Protocol):
    """A connection that ignores the server's frames; ``over`` once the server has closed it."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self.over.set()

    def write(self, data: bytes) -> None:
        """Send ``data``, if that can still be."""
        if self._transport is not None and not self.over.is_set():
            self._transport.write(data)

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame as it goes over the wire."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A header as HPACK writes one that is in no table; both parts below 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call_headers(path: bytes) -> bytes:
    """What begins a gRPC call of the method at ``path``."""
    return b"".join(
        header(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"localhost"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )
    )


GREETING = PREFACE + frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, ACK, 0, b"")


def raise_file_limit() -> int:
    """Let this process, and those it starts, have as many open files as the machine allows; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        # With the privilege for it even beyond the hard limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, 65536), max(hard, 65536)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


async def connected(address: str, count: int, first: bytes = GREETING) -> list[Connection]:
    """So many connections on which ``first`` was sent; fewer where the machine gives no more."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    made: list[Connection] = []
    while len(made) < count:
        wanted = min(100, count - len(made))
        opening = [loop.create_connection(Connection, host, int(port)) for _ in range(wanted)]
        opened = await asyncio.gather(*opening, return_exceptions=True)
        made += [c[1] for c in opened if not isinstance(c, BaseException)]
        if any(isinstance(c, BaseException) for c in opened):
            break
    for connection in made:
        connection.write(first)
    return made


async def trickle(connections: Sequence[Connection], data: bytes, seconds: float) -> None:
    """A byte of ``data`` a second on each."""
    for place in range(max(1, int(seconds))):
        for connection in connections:
            connection.write(data[place % len(data) :][:1])
        await asyncio.sleep(1)


def still_open(connections: Sequence[Connection]) -> int:
    """How many the server has not closed."""
    return sum(not connection.over.is_set() for connection in connections)


async def hang_up(connections: Sequence[Connection]) -> None:
    """Close all."""
    for connection in connections:
        connection.abort()
    await asyncio.sleep(0)


async def answered(address: str, data: bytes, patience: float = 5.0) -> bytes:
    """What comes back for ``data``, until the server closes or falls silent."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    heard = b""
    # The server may hang up while we are still talking.
    with suppress(OSError, TimeoutError):
        writer.write(data)
        writer.write_eof()
        while chunk := await asyncio.wait_for(reader.read(1 << 16), patience):
            heard += chunk
    writer.transport.abort()
    return heard


async def endless_headers(address: str, most: int) -> int:
    """Headers of one call that never end; returns the bytes sent before the server hung up, at most ``most``."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(GREETING)
    path = call_headers(b"/inference.GRPCInferenceService/ServerLive")
    writer.write(frame(HEADERS, 0, 1, path))
    more = frame(CONTINUATION, 0, 1, header(b"x" * 20, b"y" * 100) * 100)
    sent = 0
    with suppress(OSError):
        while sent < most and not reader.at_eof():
            writer.write(more)
            await asyncio.wait_for(writer.drain(), 5)
            sent += len(more)
            await asyncio.sleep(0)
    writer.transport.abort()
    return sent


class WellBehaved:
    """Calls ``infer`` over and over, one after the other, and keeps the result of each call."""

    def __init__(self, infer: Callable[[], Awaitable[object]]) -> None:
        self._infer = infer
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self.seconds: list[float] = []
        self.failures: list[str] = []

    async def __aenter__(self) -> "WellBehaved":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def progress(self, calls: int = 20) -> None:
        """Wait until ``calls`` further calls have ended."""
        target = self._ended + calls
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended >= target)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            begun = clock()
            try:
                await self._infer()
            except Exception as error:
                self.failures.append(repr(error))
            else:
                self.seconds.append(clock() - begun)
            async with self._changed:
                self._changed.notify_all()

    @property
    def _ended(self) -> int:
        return len(self.seconds) + len(self.failures)


@asynccontextmanager
async def cut_short(address: str, most: int) -> AsyncIterator[str]:
    """The address of a relay to ``address`` that passes on ``most`` bytes of each connection, and waits then."""
    pumps = set[asyncio.Task[None]]()

    async def relay(client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        pumps.update(
            {
                asyncio.ensure_future(_pump(client_reader, writer, most)),
                asyncio.ensure_future(_pump(reader, client_writer, None)),
            }
        )

    server = await asyncio.start_server(relay, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())
        for pump in pumps:
            pump.cancel()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
    with suppress(OSError):
        try:
            while (most is None or most > 0) and (data := await reader.read(1 << 18)):
                writer.write(data)
                await writer.drain()
                most = None if most is None else most - len(data)
            if most is not None and most <= 0:
                await asyncio.Event().wait()
        finally:
            writer.transport.abort()
