"""Wakes an event loop at a moment, to within microseconds: loops themselves count in milliseconds."""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_NS = 1_000_000_000
_ABSOLUTE = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """A Linux timer, timerfd_create(2), which Python has from 3.13 on. Calls ``wake`` on the running loop."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._file = self._libc.timerfd_create(time.CLOCK_MONOTONIC, flags)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._file, self._rings)

    def set(self, moment: int) -> None:
        """Fire once at ``moment``, nanoseconds of time.monotonic_ns; at once if that has passed."""
        # A time of zero would disarm it.
        value = _Timespec(*divmod(max(1, moment), _NS))
        when = _Itimerspec(_Timespec(0, 0), value)
        if self._libc.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(when), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._file)
        os.close(self._file)

    def _rings(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            return  # armed again since it fired
        self._wake()
