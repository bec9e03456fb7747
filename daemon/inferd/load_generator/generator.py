"""Sends one step's requests on the running event loop, as many at a time or as often as the load says."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from inferd.bench.tally import UNANSWERED, RequestTally
from inferd.load_generator.alarm import Alarm
from inferd.rpc.load_channels import LoadChannel, OnEnded

# A server that has ended refuses at once: clients without a pause would do nothing but call it.
_PAUSE = 0.01
# At most this many leave before responses are processed again.
_BURST = 32
_GIVING_UP = 5.0


class Generator:
    """Sends ``requests`` in turn over ``channels`` in turn until the window of ``tally`` closes, and counts there.

    For one step: either :meth:`closed` or :meth:`open`, then :meth:`settle`.
    """

    def __init__(self, channels: Sequence[LoadChannel], requests: Sequence[bytes], tally: RequestTally) -> None:
        self._channels = channels
        self._requests = requests
        self._tally = tally
        self._due: Sequence[int] = ()
        self._sent = 0
        self._pending = 0
        self._gave_up = False
        self._stopped = asyncio.Event()
        self._idle = asyncio.Event()

    def stop(self, patience: float) -> None:
        """Close the window now, and drop requests that have not ended ``patience`` seconds later."""
        self._tally.closes = min(self._tally.closes, time.monotonic_ns())
        self._stopped.set()
        asyncio.get_running_loop().call_later(patience, self._give_up)

    async def closed(self, seats: int) -> None:
        """``seats`` clients that each send again after a response; returns when the window closes."""
        for seat in range(seats):
            self._ask(seat)
        await self._window_closes()

    async def open(self, due: Sequence[int]) -> None:
        """Send requests at ``due``, moments of time.monotonic_ns in ascending order; returns when all that were due
        before the window closed have left."""
        self._due = due
        with Alarm(self._send_due) as self._alarm:
            self._send_due()
            await self._window_closes()
            # Late or not, every due request is sent: leaving one out would flatter the figures.
            while self._more_due() and not self._gave_up:
                self._send_due()
                await asyncio.sleep(0)

    async def settle(self, patience: float) -> None:
        """Wait until all requests have ended, ``patience`` seconds at most; the rest are given up as UNANSWERED."""
        giving_up = asyncio.get_running_loop().call_later(patience, self._give_up)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience + _GIVING_UP):
                while self._pending:
                    self._idle.clear()
                    await self._idle.wait()
        giving_up.cancel()

    def _give_up(self) -> None:
        self._gave_up = True
        for channel in self._channels:
            channel.give_up()

    # -- a closed loop ------------------------------------------------------------

    def _ask(self, seat: int) -> None:
        channel, request = self._channels[seat % len(self._channels)], self._requests[seat % len(self._requests)]
        self._start(channel, request, partial(self._asked, seat, time.monotonic_ns()))

    def _asked(self, seat: int, begun: int, code: str) -> None:
        self._ended(begun, code)
        if time.monotonic_ns() < self._tally.closes and not self._gave_up:
            if code == "UNAVAILABLE":
                asyncio.get_running_loop().call_later(_PAUSE, self._ask_again, seat)
            else:
                self._ask(seat)

    def _ask_again(self, seat: int) -> None:
        if time.monotonic_ns() < self._tally.closes and not self._gave_up:
            self._ask(seat)

    # -- an open loop -------------------------------------------------------------

    def _send_due(self) -> None:
        for _ in range(_BURST):
            if not self._more_due():
                return
            moment, now = self._due[self._sent], time.monotonic_ns()
            if moment > now:
                break
            channel = self._channels[self._sent % len(self._channels)]
            request = self._requests[self._sent % len(self._requests)]
            self._sent += 1
            self._tally.left(moment, now)
            self._start(channel, request, partial(self._ended, moment))
        if self._more_due():
            self._alarm.set(self._due[self._sent])

    def _more_due(self) -> bool:
        return self._sent < len(self._due) and self._due[self._sent] < self._tally.closes

    # -- either -------------------------------------------------------------------

    def _start(self, channel: LoadChannel, request: bytes, ended: OnEnded) -> None:
        self._pending += 1
        channel.start(request, ended)

    def _ended(self, due: int, code: str) -> None:
        now = time.monotonic_ns()
        # Requests cut off by an interruption count for no side.
        if not self._gave_up:
            self._tally.ended(due, now, code)
        elif not self._stopped.is_set():
            self._tally.ended(due, now, UNANSWERED)
        self._pending -= 1
        if not self._pending:
            self._idle.set()

    async def _window_closes(self) -> None:
        left = self._tally.closes - time.monotonic_ns()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, left / 1e9)):
                await self._stopped.wait()
