"""An asyncio event loop that waits on gRPC's completion queue.

It is asyncio's own loop with another selector, which waits on the queue: an event of gRPC is handled by the thread that
waited for it, after nothing but a function call. grpc.aio waits on a second thread, and each of a call's events
crosses from there to the loop (docs/decisions/0024 has both figures).

What a selector is for, descriptors that become readable, is left to a thread: there are few of them, a signal or a line
from a supervisor, and it reports each by an event on the queue.
"""

import asyncio
import select
import selectors
import threading
import time
from asyncio import events
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple, Unpack

from inferd.transport import core
from inferd.transport.wake_call import Tag, WakeCall

Args = TypeVarTuple("Args")

# The queue's deadlines are of the wall clock. After a step back of that, a timer is late by at most this many seconds.
_LONGEST_WAIT = 1.0
# Events to handle for each turn of callbacks that are ready.
_EVENTS_A_TURN = 16


class QueueEventLoop(asyncio.SelectorEventLoop):
    """An event loop for servers on its ``queue``. Raises RuntimeError if this version of grpcio can't do that."""

    def __init__(self) -> None:
        self.queue = core.CompletionQueue()
        self._wake_call = WakeCall(self.queue)
        self._waking = False
        self._queue_selector = _QueueSelector(self)
        super().__init__(self._queue_selector)
        self._queue_selector.start()

    def post(self, tag: Tag) -> None:
        """Have ``tag`` called on the loop's thread, with an event; harmless on any thread.

        It runs before callbacks that are ready, and costs less than they do: asyncio makes no turn for it.
        """
        self._wake_call.post(tag)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Args]], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's, by :meth:`post`."""
        self._check_closed()  # type: ignore[attr-defined]
        handle = events.Handle(callback, args, self, context)
        self.post(_Posted(handle))
        return handle

    def close(self) -> None:
        """As asyncio's. Servers on the queue must have been stopped."""
        if self.is_closed():
            return
        self._queue_selector.stop()
        super().close()
        # The queue is not shut down: a thread that posts to such a queue ends the process.

    def _write_to_self(self) -> None:
        # asyncio calls this where a callback became ready while the loop may be waiting.
        if not self._waking:
            self._waking = True
            self._wake_call.post(self._awake)

    def _awake(self, _: object) -> None:
        self._waking = False


class _Posted:
    """A callback as a tag."""

    __slots__ = ("_handle",)

    def __init__(self, handle: events.Handle) -> None:
        self._handle = handle

    def __call__(self, _: object) -> None:
        if not self._handle.cancelled():
            self._handle._run()  # noqa: SLF001 - as asyncio's loop runs it


class _QueueSelector(selectors.EpollSelector):
    """Waits on the queue of ``loop`` for events, and runs them, until asyncio has something to do."""

    def __init__(self, loop: QueueEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._poll = loop.queue.poll
        # Whether a descriptor is ready, and whether asyncio has been told so.
        self._flagged = self._told = False
        self._go_on = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="descriptors", daemon=True)

    def start(self) -> None:
        """Watch the descriptors."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more, while the loop's own descriptors are still open."""
        self._stopping = True
        self._go_on.set()
        self._loop._csock.send(b"\0")  # type: ignore[attr-defined]  # noqa: SLF001 - the loop's wake-up of its selector
        self._thread.join()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """The descriptors that are ready, after at most ``timeout`` seconds, with no limit if that is None; sooner and
        empty if an event made a callback ready or a timer due."""
        if self._told:
            # asyncio has done what the last ones were ready for.
            self._told = False
            self._go_on.set()
        if timeout is not None and timeout <= 0:
            for _ in range(_EVENTS_A_TURN):
                if not self._handle(self._poll(0)):
                    break
            return self._ready()
        loop: Any = self._loop
        ready, timers, monotonic, wall = loop._ready, loop._scheduled, time.monotonic, time.time  # noqa: SLF001
        while not ready and not self._flagged and not loop._stopping:  # noqa: SLF001
            if not timers:
                self._handle(self._poll())
                continue
            # An event may have set an earlier timer than asyncio knew of.
            wait = timers[0].when() - monotonic()
            if wait <= 0:
                break
            self._handle(self._poll(wall() + wait))
        return self._ready()

    def _handle(self, event: Any) -> bool:
        """Run what ``event`` is for, if it is one."""
        tag = event.tag
        if tag is None:
            return False
        try:
            tag(event)
        except Exception as error:
            self._loop.call_exception_handler({"message": f"event of gRPC failed in {tag!r}", "exception": error})
        return True

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        if not self._flagged:
            return []
        self._flagged, self._told = False, True
        return super().select(0)

    def _watch(self) -> None:
        """On the thread: wait for descriptors, and report that some are ready."""
        waiting = select.poll()
        waiting.register(self.fileno(), select.POLLIN)
        while not self._stopping:
            if not waiting.poll(_LONGEST_WAIT * 1000):
                self._loop.post(_look_at_the_clock)
                continue
            self._loop.post(self._flag)
            while not self._go_on.wait(_LONGEST_WAIT):
                self._loop.post(_look_at_the_clock)
            self._go_on.clear()

    def _flag(self, _: object) -> None:
        self._flagged = True


def _look_at_the_clock(_: object) -> None:
    """An event for its own sake: the loop looks at the monotonic clock after each."""
