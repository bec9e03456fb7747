"""The regions that clients have registered, with the memory behind them."""

import weakref
from collections import deque
from functools import partial

from inferd.errors import InvalidRequest
from inferd.shared_memory.posix import Opened, PosixMemory
from inferd.shared_memory.regions import (
    Region,
    RegionLimits,
    Regions,
    check_name,
    check_span,
    object_name,
    shrunk,
    unusable,
)
from inferd.tensors import Placed


class Store:
    """Registers, finds and gives up regions. Belongs to one thread.

    ``owner`` is who is calling, as they have proved it; where nobody has to, all are one. ``mapped`` regions are used
    in place, others through copies.
    """

    def __init__(self, limits: RegionLimits, *, mapped: bool) -> None:
        self._regions = Regions(limits)
        self._mapped = mapped
        # The last reference to a region's memory may go on any thread.
        self._released: deque[int] = deque()

    def register(self, owner: str, name: str, key: str, offset: int, nbytes: int) -> None:
        """Raises InvalidRequest, RegionExists or RegionLimit, and then nothing is held."""
        check_name(name)
        wanted = object_name(key)
        if not nbytes:
            raise InvalidRequest("", f"region '{name}' would have no bytes")
        while self._released:
            self._regions.released(self._released.popleft())
        self._regions.check_room(owner, name, nbytes)
        try:
            opened = Opened(wanted)
        except (OSError, ValueError):
            raise unusable(key) from None
        try:
            # Before its size is told: it may be another's.
            self._regions.check_unclaimed(owner, key, opened.identity)
            check_span(f"region '{name}'", offset, nbytes, opened.size)
            memory = PosixMemory(opened, offset, nbytes, partial(shrunk, name), mapped=self._mapped)
        except (OSError, ValueError):
            opened.close()
            raise unusable(key) from None
        except BaseException:
            opened.close()
            raise
        weakref.finalize(memory, self._released.append, nbytes)
        self._regions.add(Region(owner, name, key, offset, nbytes, opened.identity, memory))

    def unregister(self, owner: str, name: str = "") -> None:
        """Forget that region of ``owner``'s, or all of them. Requests that use it keep it until they end."""
        if name:
            self._regions.remove(owner, name)
        else:
            self._regions.remove_all(owner)

    def regions(self, owner: str, name: str = "") -> list[Region]:
        """That region of ``owner``'s, or all of them. Raises UnknownRegion."""
        return [self._regions.find(owner, name)] if name else self._regions.of(owner)

    def place(self, owner: str, name: str, offset: int, nbytes: int) -> Placed:
        """That part of a region of ``owner``'s. Raises UnknownRegion or InvalidRequest."""
        region = self._regions.find(owner, name)
        check_span(f"region '{name}'", offset, nbytes, region.nbytes)
        return Placed(name, offset, nbytes, region.memory)
