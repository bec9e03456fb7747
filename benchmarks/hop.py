"""Measures one hop between two processes: the price of a front process before engine workers.

    python -m benchmarks.hop --seconds 2

A front process hands the bytes of each request to another and gets a short response, both on asyncio and uvloop, as a
gRPC front would. Over a Unix socket the bytes go through the kernel. With shared memory the front copies them into a
slot, and only the slot's number goes over the socket. Nothing is parsed, checked or computed: a hop costs at least
this much, on top of what both processes do for the request anyway. Prints a table; :func:`measured` is for workers.py.
"""

import argparse
import asyncio
import mmap
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

import uvloop

from benchmarks.open_loop import quantile

KINDS = ("socket", "shared memory")
SLOTS = 16
_SLOT_BYTES = 1 << 20
_ANSWER = bytes(64)
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Hop:
    """Round trips a second, microseconds of CPU on each side for one, and its median microseconds."""

    kind: str
    nbytes: int
    in_flight: int
    rate: float
    front_cpu: float
    engine_cpu: float
    p50: float


class Engine(asyncio.Protocol):
    """Answers each whole message; ``slots`` are the shared memory where the bytes do not go over the socket."""

    def __init__(self, slots: mmap.mmap | None, ended: asyncio.Future[None]) -> None:
        self._slots, self._ended = slots, ended
        self._buffer = bytearray()
        self.answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        begun = 0
        while len(buffer) - begun >= _LENGTH.size:
            (said,) = _LENGTH.unpack_from(buffer, begun)
            if self._slots is None:
                if len(buffer) - begun < _LENGTH.size + said:
                    break
                begun += said
            else:
                # An engine would copy the bytes from here into an infer request; this one reads one byte.
                self._slots[said * _SLOT_BYTES]
            begun += _LENGTH.size
            self.answered += 1
            self._transport.write(_ANSWER)
        del buffer[:begun]

    def connection_lost(self, _: Exception | None) -> None:
        self._ended.set_result(None)


class Front(asyncio.Protocol):
    """Sends ``message`` again after each response, until :meth:`stop`."""

    def __init__(self, message: bytes, slots: mmap.mmap | None) -> None:
        self._message, self._slots = message, slots
        self._pending = 0
        self._free = list(range(SLOTS))
        self._sent: list[tuple[float, int]] = []
        self.timings: list[float] = []
        self.answered = asyncio.Event()
        self._stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self) -> None:
        at, slot, message = time.perf_counter(), self._free.pop(), self._message
        if self._slots is None:
            self._transport.writelines([_LENGTH.pack(len(message)), message])
        else:
            self._slots[slot * _SLOT_BYTES : slot * _SLOT_BYTES + len(message)] = message
            self._transport.write(_LENGTH.pack(slot))
        self._sent.append((at, slot))

    def data_received(self, data: bytes) -> None:
        self.answered.set()
        self._pending += len(data)
        now = time.perf_counter()
        while self._pending >= len(_ANSWER):
            self._pending -= len(_ANSWER)
            at, slot = self._sent.pop(0)
            self.timings.append(now - at)
            self._free.append(slot)
            if not self._stopped:
                self.send()

    def stop(self) -> None:
        self._stopped = True


def measured(kind: str, nbytes: int, in_flight: int, seconds: float) -> Hop:
    """One of :data:`KINDS` with messages of ``nbytes``, ``in_flight`` of them at a time."""
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("hop")
    os.ftruncate(memory, SLOTS * _SLOT_BYTES)
    command = [sys.executable, "-m", "benchmarks.hop", "--engine", str(theirs.fileno())]
    command += ["--memory", str(memory)] if kind == KINDS[1] else []
    with subprocess.Popen(command, pass_fds=(theirs.fileno(), memory), stdout=subprocess.PIPE, text=True) as engine:
        theirs.close()
        slots = mmap.mmap(memory, SLOTS * _SLOT_BYTES) if kind == KINDS[1] else None
        front, cpu, took = uvloop.run(_front(ours, bytes(nbytes), slots, in_flight, seconds))
        said, _ = engine.communicate(timeout=30)
    os.close(memory)
    answered, engine_cpu = said.split()
    return Hop(
        kind,
        nbytes,
        in_flight,
        len(front.timings) / took,
        cpu / len(front.timings) * 1e6,
        float(engine_cpu) / int(answered) * 1e6,
        (quantile(front.timings, 0.5) or 0.0) * 1e6,
    )


async def _front(
    ours: socket.socket, message: bytes, slots: mmap.mmap | None, in_flight: int, seconds: float
) -> tuple[Front, float, float]:
    loop = asyncio.get_running_loop()
    transport, front = await loop.create_connection(lambda: Front(message, slots), sock=ours)
    transport.set_write_buffer_limits(64 << 20)
    for _ in range(in_flight):
        front.send()
    # The other process has to start first.
    await front.answered.wait()
    cpu, begun = time.process_time(), time.perf_counter()
    front.timings.clear()
    await asyncio.sleep(seconds)
    cpu, took = time.process_time() - cpu, time.perf_counter() - begun
    front.stop()
    transport.close()
    return front, cpu, took


async def _engine(theirs: socket.socket, slots: mmap.mmap | None) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    before = resource.getrusage(resource.RUSAGE_SELF)
    _, engine = await loop.create_connection(lambda: Engine(slots, ended), sock=theirs)
    await ended
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(engine.answered, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine is not None:
        slots = mmap.mmap(arguments.memory, SLOTS * _SLOT_BYTES) if arguments.memory is not None else None
        uvloop.run(_engine(socket.socket(fileno=arguments.engine), slots))
        return 0
    print(f"{'':>14} {'bytes':>7} {'in flight':>9} {'1/s':>8} {'p50 us':>7} {'front us':>8} {'engine us':>9}")
    for kind in KINDS:
        for nbytes in (1024, 600_000):
            for in_flight in (1, SLOTS):
                hop = measured(kind, nbytes, in_flight, arguments.seconds)
                print(
                    f"{kind:>14} {nbytes:7} {in_flight:9} {hop.rate:8.0f} {hop.p50:7.0f} {hop.front_cpu:8.1f} "
                    f"{hop.engine_cpu:9.1f}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
