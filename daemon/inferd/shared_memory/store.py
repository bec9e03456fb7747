"""The regions that clients have registered, with the memory behind them."""

import weakref
from collections import deque
from collections.abc import Collection
from functools import partial
from typing import Self

from inferd.config.daemon import Settings
from inferd.errors import InvalidRequest
from inferd.shared_memory.posix import OpenedObject, PosixMemory
from inferd.shared_memory.regions import (
    Region,
    RegionLimits,
    RegionTable,
    Span,
    check_name,
    check_own,
    check_span,
    object_name,
    shrunk_error,
    unusable_error,
)
from inferd.tensors import Placed

# Bounds the memory that clients with ever new offsets can take.
_MAX_CACHED = 1024


class RegionStore:
    """Registers, finds and unregisters regions. Belongs to one thread.

    ``owner`` is the proved name of the caller; without authentication all callers are one. ``mapped`` regions are used
    in place, others through copies.
    """

    def __init__(self, limits: RegionLimits, *, mapped: bool) -> None:
        self._regions = RegionTable(limits)
        self._mapped = mapped
        # The last reference to a region's memory may be dropped on any thread.
        self._released: deque[tuple[str, int]] = deque()
        # Recent results, by owner and spans. Cleared when any region is removed: they would keep its memory.
        self._located: dict[tuple[str, tuple[Span, ...]], tuple[Placed, ...]] = {}

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The store of clients' shared memory, None if ``settings`` turn it off."""
        if settings.shared_memory == "off":
            return None
        limits = RegionLimits(settings.shared_memory_max_regions, settings.shared_memory_max_bytes)
        return cls(limits, mapped=settings.shared_memory == "mapped")

    def register(
        self, owner: str, name: str, key: str, offset: int, nbytes: int, prefixes: Collection[str] = ("",)
    ) -> None:
        """``prefixes`` are those of ``owner``'s keys. Raises InvalidRequest, NotAllowed, RegionExists or
        RegionLimit, and then holds nothing."""
        check_name(name)
        object_key = object_name(key)
        # Before touching the object: whether it exists must not be disclosed to another client.
        check_own(owner, object_key, prefixes)
        if not nbytes:
            raise InvalidRequest("", f"region '{name}' needs at least 1 byte")
        while self._released:
            self._regions.released(*self._released.popleft())
        self._regions.check_room(owner, name, nbytes)
        try:
            opened = OpenedObject(object_key)
        except (OSError, ValueError):
            raise unusable_error(key) from None
        try:
            # Before disclosing its size: it may be another client's.
            self._regions.check_unclaimed(owner, key, opened.identity)
            check_span(f"region '{name}'", offset, nbytes, opened.size)
            memory = PosixMemory(opened, offset, nbytes, shrunk=partial(shrunk_error, name), mapped=self._mapped)
        except (OSError, ValueError):
            opened.close()
            raise unusable_error(key) from None
        except BaseException:
            opened.close()
            raise
        weakref.finalize(memory, self._released.append, (owner, nbytes))
        self._regions.add(Region(owner, name, key, offset, nbytes, opened.identity, memory))

    def unregister(self, owner: str, name: str = "") -> None:
        """Forget that region of ``owner``, or all of them. Requests that use it keep it until they end."""
        self._located.clear()
        if name:
            self._regions.remove(owner, name)
        else:
            self._regions.remove_all(owner)

    def regions(self, owner: str, name: str = "") -> list[Region]:
        """That region of ``owner``, or all of them. Raises UnknownRegion."""
        return [self._regions.find(owner, name)] if name else self._regions.of(owner)

    def locate(self, owner: str, span: Span) -> Placed:
        """That part of a region of ``owner``. Raises UnknownRegion or InvalidRequest."""
        region = self._regions.find(owner, span.region)
        check_span(f"region '{span.region}'", span.offset, span.nbytes, region.nbytes)
        return Placed(span.region, span.offset, span.nbytes, region.memory)

    def locate_all(self, owner: str, spans: tuple[Span, ...]) -> tuple[Placed, ...]:
        """All these parts. Clients ask for the same ones again and again, so the objects may be the same as before,
        but never those of an unregistered region. Raises the error of the first that does not exist."""
        if (found := self._located.get((owner, spans))) is None:
            found = tuple(self.locate(owner, span) for span in spans)
            if len(self._located) >= _MAX_CACHED:
                self._located.clear()
            self._located[owner, spans] = found
        return found
