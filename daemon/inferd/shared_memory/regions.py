"""Decides which shared memory regions may exist, who owns them, and what lies inside them. Opens nothing.

Names, keys and numbers come from clients. Every problem with an object gets the same sentence, so that clients can't
learn from it what else exists on this machine (CVE-2025-23319, CVE-2025-23320).

Nothing proves that a client made the object that its key names. So if clients prove who they are, each key belongs to
one client by its prefix, no matter which of them asks first.
"""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from inferd.errors import InvalidRequest, NotAllowed, RegionExists, RegionLimit, UnknownRegion, listed, one_line
from inferd.fair_share import fair_share
from inferd.tensors import Memory

# Objects that the daemon itself may create one day; a client must never get hold of one (CVE-2025-23334).
OWN_PREFIX = "inferd"
# The C library's names for semaphores, which are objects as well.
_SEMAPHORE_PREFIX = "sem."

MAX_NAME = 128
# The longest file name.
MAX_KEY = 255

_NAME = re.compile(rf"[!-~]{{1,{MAX_NAME}}}")
_KEY = re.compile(rf"[!-.0-~]{{1,{MAX_KEY}}}")


@dataclass(frozen=True, slots=True)
class RegionLimits:
    """How many regions and how many bytes in them are allowed, for all clients together."""

    regions: int = 256
    nbytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Region:
    """``nbytes`` from ``offset`` on of the object ``key``, which ``owner`` calls ``name``. ``object`` identifies the
    object under any name."""

    owner: str
    name: str
    key: str
    offset: int
    nbytes: int
    object: tuple[int, int]
    memory: Memory


class Span(NamedTuple):
    """``nbytes`` from ``offset`` on of the region with the name ``region``."""

    region: str
    offset: int
    nbytes: int


class RegionTable:
    """The regions of all clients. Each owner has names of its own, neither sees nor uses another's, and can't take all
    the room there is: see :func:`inferd.fair_share.fair_share`. The owner "" stands for all clients that can't be told
    apart.

    A removed region counts until it is :meth:`released`: requests may still be using it.
    """

    def __init__(self, limits: RegionLimits) -> None:
        self._limits = limits
        self._regions: dict[tuple[str, str], Region] = {}
        # By owner.
        self._held: Counter[str] = Counter()
        self._held_bytes: Counter[str] = Counter()

    def check_room(self, owner: str, name: str, nbytes: int) -> None:
        """Raises RegionExists or RegionLimit unless ``owner`` may add a region of that name and size."""
        if (owner, name) in self._regions:
            raise RegionExists(name)
        _check_room(self._held, owner, 1, self._limits.regions, "regions")
        _check_room(self._held_bytes, owner, nbytes, self._limits.nbytes, "bytes in all regions")

    def check_unclaimed(self, owner: str, key: str, identity: tuple[int, int]) -> None:
        """Raises InvalidRequest if a region of another owner lies in that object."""
        if any(r.object == identity and r.owner != owner for r in self._regions.values()):
            raise unusable_error(key)

    def add(self, region: Region) -> None:
        """Add a region that was checked before."""
        self._regions[region.owner, region.name] = region
        self._held[region.owner] += 1
        self._held_bytes[region.owner] += region.nbytes

    def remove(self, owner: str, name: str) -> None:
        """Remove it. Harmless if there is none."""
        self._regions.pop((owner, name), None)

    def remove_all(self, owner: str) -> None:
        """Remove all regions of ``owner``."""
        for region in self.of(owner):
            self.remove(owner, region.name)

    def released(self, owner: str, nbytes: int) -> None:
        """The memory of a region of that size and ``owner`` is no longer in use."""
        self._held_bytes[owner] -= nbytes
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner], self._held_bytes[owner]

    def find(self, owner: str, name: str) -> Region:
        """Raises UnknownRegion, also for another owner's."""
        if (found := self._regions.get((owner, name))) is None:
            raise UnknownRegion(name)
        return found

    def of(self, owner: str) -> list[Region]:
        """All regions of ``owner``."""
        return [region for region in self._regions.values() if region.owner == owner]


def _check_room(held: Counter[str], owner: str, more: int, most: int, what: str) -> None:
    if held.total() + more > most:
        raise RegionLimit(f"{most} {what}")
    others = held.total() - held[owner]
    if owner and held[owner] + more > (part := fair_share(most, others)):
        raise RegionLimit(f"{part} {what} of one client")


def check_name(name: str) -> None:
    """Raises InvalidRequest unless a region may have this ``name``."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "", f"a region's name is 1 to {MAX_NAME} printable ASCII characters without spaces, got '{_shown(name)}'"
        )


def object_name(key: str) -> str:
    """The name of the POSIX shared memory object ``key``, without its leading slash, if any.

    Raises InvalidRequest if that is not a name, or not one for clients.
    """
    name = key.removeprefix("/")
    if not _KEY.fullmatch(name) or name in (".", "..") or name.startswith(_SEMAPHORE_PREFIX):
        raise InvalidRequest(
            "",
            f"a key is the name of a POSIX shared memory object: up to {MAX_KEY} printable ASCII characters, no space, "
            f"no '/' but the first, got '{_shown(key)}'",
        )
    if name.lower().startswith(OWN_PREFIX):
        problem = f"keys that begin with '{OWN_PREFIX}' are reserved for the server, got '{_shown(key)}'"
        raise InvalidRequest("", problem)
    return name


def check_own(owner: str, name: str, prefixes: Collection[str]) -> None:
    """Raises NotAllowed unless the object ``name`` belongs to ``owner``: it begins with one of ``prefixes``."""
    if not name.startswith(tuple(prefixes)):
        raise NotAllowed(
            f"the key '{_shown(name)}'", f"keys of the client '{_shown(owner)}' begin with {listed(prefixes)}"
        )


def check_span(what: str, offset: int, nbytes: int, size: int) -> None:
    """Raises InvalidRequest unless ``nbytes`` from ``offset`` on lie within ``size`` bytes."""
    if offset < 0 or nbytes < 0 or offset > size or nbytes > size - offset:
        raise InvalidRequest(
            "", f"{what}: {_number(nbytes)} bytes from offset {_number(offset)} on reach past its {size} bytes"
        )


def is_accessible(mode: int, uid: int, gid: int, our_uid: int, our_gids: Collection[int]) -> bool:
    """Whether the mode of an object with this user and group lets this process read and write it.

    A daemon that runs as root could open any object, and must not do so for any client that asks.
    """
    if uid == our_uid:
        needed = 0o600
    elif gid in our_gids:
        needed = 0o060
    else:
        needed = 0o006
    return mode & needed == needed


def unusable_error(key: str) -> InvalidRequest:
    """The error for an object that does not exist, is not accessible, or belongs to another client."""
    return InvalidRequest("", f"there is no shared memory object '{_shown(key)}' that this server may read and write")


def shrunk_error(name: str) -> InvalidRequest:
    """The error for an object that has become smaller than its region."""
    return InvalidRequest("", f"region '{_shown(name)}' is larger than its shared memory object, which has shrunk")


def _shown(text: str) -> str:
    return one_line(text, 80)


def _number(number: int) -> str:
    return str(number) if abs(number) < 2**64 else "2**64 or more"
