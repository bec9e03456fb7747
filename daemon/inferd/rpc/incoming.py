"""What messages on their way to the daemon may take: memory, and time.

gRPC holds a message from its first byte to its last, and does not say how large it will be, or how much of it is there.
So inferd asks the kernel what has arrived on the connections of such messages, and what the process uses, and turns
calls away while one of both is too much.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Self

import structlog

from inferd import cgroup
from inferd.config.daemon import Settings
from inferd.engine.runtime import give_memory_back
from inferd.errors import IncomingFull, InferdError, MemoryFull, MessageTimeout
from inferd.rpc import status
from inferd.rpc.held_bytes import HeldBytes, excess
from inferd.transport.call import OpenCalls, ServerCall
from inferd.transport.connection import ReceivedBytes

log = structlog.get_logger("inferd.rpc")

# Seconds between looks. A message that takes less to arrive is never turned away.
_TICK = 0.02
# A request up to this size is taken even when memory is full: refusing it would free nothing. Several of more than the
# second size may arrive between two looks, so each of them is a look.
_SMALL, _LARGE = 64 << 10, 1 << 20
# Seconds between attempts to give freed memory back, which take some milliseconds.
_BETWEEN_ATTEMPTS = 1.0
# Counting what has arrived on thousands of connections takes milliseconds: it gets one in so many parts of the time.
_PART = 20
# Without a setting, this part of the memory is left for what inferd does not see, and at least that many bytes.
_SPARE_PART, _SPARE = 16, 256 << 20

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class IncomingLimits:
    """Bytes of memory above which messages are turned away, seconds that one may take to arrive, and bytes of all
    that have taken a while."""

    memory_bytes: int = 1 << 62
    seconds: float = 120.0
    held_bytes: int = 256 << 20

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The limits that ``settings`` ask for; workers share the memory."""
        limit = settings.max_memory_bytes or _default(cgroup.memory())
        workers = max(1, settings.workers)
        return cls(max(1, limit // workers), settings.message_timeout, max(1, settings.max_incoming_bytes // workers))


def _default(available: int) -> int:
    return max(available // 2, available - max(_SPARE, available // _SPARE_PART))


DEFAULT_INCOMING = IncomingLimits()


def private_memory(statm: Path = Path("/proc/self/statm")) -> int:
    """Bytes that this process has in memory and that are no file's; 0 without /proc."""
    try:
        resident, shared = map(int, statm.read_bytes().split()[1:3])
    except (OSError, ValueError):
        return 0
    return (resident - shared) * _PAGE


class IncomingMessages:
    """Watches the calls whose messages are on their way, while there are any; on the event loop.

    Calls with one message may hold so many bytes together; beyond that, those on the connections that hold the most are
    turned away. Above the memory limit it turns away the older half of them each time it looks, calls with one message
    before streams. A call that has only just begun never is. A call that is turned away is answered at once.
    """

    def __init__(self, limits: IncomingLimits, used: Callable[[], int] = private_memory) -> None:
        self._limits = limits
        self._used = used
        self._calls = OpenCalls()
        self._timer: asyncio.TimerHandle | None = None
        self._full = False
        self._giving: asyncio.TimerHandle | None = None
        self._held = HeldBytes()
        self._received = ReceivedBytes()
        self._count_at = 0.0
        self._ticking = False
        # The calls that waited for their message at the last look.
        self._seen: set[ServerCall] = set()
        # Bytes in use at the last look, and what they have grown by since messages were last counted.
        self._used_before = self._grown = 0

    def bind(self, calls: OpenCalls) -> None:
        """Watch ``calls``."""
        self._calls = calls
        calls.delivered = self._delivered

    def _delivered(self, call: ServerCall, nbytes: int) -> None:
        self._held.delivered(call.peer(), nbytes)

    def look(self) -> None:
        """A call has arrived."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_TICK, self._tick)
            if not self._ticking:
                # Soon, but not before the call is answered that may be answered at once.
                loop.call_soon(self._note_used)

    def stop(self) -> None:
        """Look no more."""
        for timer in (self._timer, self._giving):
            if timer is not None:
                timer.cancel()

    def check(self, nbytes: int) -> None:
        """Raises MemoryFull if a message of ``nbytes`` that has arrived is more than may be kept."""
        if nbytes <= _SMALL:
            return
        if nbytes > _LARGE and not self._full:
            self._judge(self._used())
        if self._full:
            raise MemoryFull(self._limits.memory_bytes, _BETWEEN_ATTEMPTS)

    def _note_used(self) -> None:
        self._used_before = self._used()

    def _tick(self) -> None:
        # After the events that are in the queue: a message that has arrived is none that is on its way.
        asyncio.get_running_loop().call_soon_threadsafe(self._act)

    def _act(self) -> None:
        self._timer, self._ticking = None, True
        used = self._used()
        self._end_late()
        # Not by their age: while the loop is busy every call becomes old.
        before, self._seen = self._seen, set(self._calls.receiving)
        waiting = [call for call in self._calls.receiving if call in before and call.turned_away is None]
        self._keep_to_budget(waiting, used - self._used_before)
        self._free(waiting, used)
        self._used_before = used
        if self._full or self._calls.receiving or self._calls.receiving_streams:
            self.look()
        self._ticking = False

    def _end_late(self) -> None:
        for call in list(_older(self._calls.receiving, self._limits.seconds)):
            _turn_away(call, MessageTimeout(self._limits.seconds))

    def _keep_to_budget(self, calls: Sequence[ServerCall], grown: int) -> None:
        """Turn away those of ``calls`` whose messages hold more than all may; the process has ``grown`` by so many
        bytes."""
        self._grown += grown
        begun = time.monotonic()
        if not (calls or self._held):
            self._grown = 0
            return
        if begun < self._count_at:
            return
        by_peer: dict[str, list[ServerCall]] = {}
        for call in calls:
            by_peer.setdefault(call.peer(), []).append(call)
        held = self._held.look(self._received.of(by_peer), self._grown)
        self._grown = 0
        self._calls.counted = bool(held)
        for peer in excess(held, self._limits.held_bytes):
            for call in by_peer[peer]:
                _turn_away(call, IncomingFull(self._limits.held_bytes, _BETWEEN_ATTEMPTS))
            self._give_back_soon()
        self._count_at = begun + _PART * (time.monotonic() - begun)

    def _free(self, waiting: Sequence[ServerCall], used: int) -> None:
        self._judge(used)
        if not self._full:
            return
        # Without those that the budget has turned away.
        calls = [call for call in waiting or self._calls.receiving_streams if call.turned_away is None]
        for call in calls[: (len(calls) + 1) // 2]:
            _turn_away(call, MemoryFull(self._limits.memory_bytes, _BETWEEN_ATTEMPTS))
        self._give_back_soon()

    def _judge(self, used: int) -> None:
        """Whether memory is full with so many bytes ``used``; the log says when it becomes so."""
        was_full, self._full = self._full, used > self._limits.memory_bytes
        if self._full and not was_full:
            log.warning("memory full: requests are turned away", max_memory_bytes=self._limits.memory_bytes)

    def _give_back_soon(self) -> None:
        """Return freed memory to the system a while after the last call was turned away, and each second meanwhile."""
        if self._giving is None:
            self._giving = asyncio.get_running_loop().call_later(_BETWEEN_ATTEMPTS, self._give_back)

    def _give_back(self) -> None:
        self._giving = None
        asyncio.get_running_loop().run_in_executor(None, give_memory_back)


def _older(calls: Iterable[ServerCall], seconds: float) -> Iterator[ServerCall]:
    """Those of ``calls``, which are in the order of their arrival, that arrived more than ``seconds`` ago and have not
    been turned away."""
    before = time.monotonic_ns() - int(seconds * 1e9)
    return (call for call in takewhile(lambda call: call.arrived < before, calls) if call.turned_away is None)


def _turn_away(call: ServerCall, error: InferdError) -> None:
    call.turned_away = error
    status.fail(call, error)
    call.report_end()
