"""What gRPC has no function for: closing one of its connections, and how much has arrived on it. Both by its socket,
which is this process's too."""

import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

_AT_ONCE = 1 << 20
# tcpi_bytes_received in Linux's struct tcp_info, which only ever grows at its end.
_RECEIVED, _INFO_BYTES = 128, 136


def close(peer: str, last: bytes = b"") -> bool:
    """Close this process's TCP connection with ``peer``, named as gRPC names it (``ipv4:127.0.0.1:5000``), after
    sending ``last`` as far as it can be sent at once; what the peer has sent is thrown away.

    False if there is none, as for a peer on a Unix socket, which has no name. Raises OSError without /proc.
    """
    if (address := _address(peer)) is None:
        return False
    for descriptor in _sockets():
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
            # The copy is closed here, gRPC's own descriptor by gRPC, which reads the end.
            if _is(copy, address):
                _end(copy, last)
                return True
    return False


class ReceivedBytes:
    """How many bytes the kernel has received on TCP connections of this process, by the names of their peers."""

    def __init__(self) -> None:
        # Descriptors and their families; gRPC may close one meanwhile, and another may get its number.
        self._known: dict[str, tuple[int, int]] = {}

    def of(self, peers: Iterable[str]) -> dict[str, int]:
        """For each of the ``peers`` that has a connection; others are forgotten."""
        found, unknown = {}, {}
        for peer in peers:
            if (nbytes := self._count(peer)) is not None:
                found[peer] = nbytes
            elif (address := _address(peer)) is not None:
                unknown[address] = peer
        self._known = {peer: self._known[peer] for peer in found}
        if unknown:
            self._learn(unknown)
            found |= {peer: nbytes for peer in unknown.values() if (nbytes := self._count(peer)) is not None}
        return found

    def _count(self, peer: str) -> int | None:
        if (known := self._known.get(peer)) is None:
            return None
        try:
            # gRPC's own descriptor, which must not be closed here.
            borrowed = socket.socket(known[1], socket.SOCK_STREAM, 0, fileno=known[0])
        except OSError:
            return None
        try:
            if _named(borrowed.getpeername()) != _address(peer):
                return None
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            return int.from_bytes(info[_RECEIVED : _RECEIVED + 8], sys.byteorder)
        except OSError:
            return None
        finally:
            borrowed.detach()

    def _learn(self, addresses: Mapping[tuple[str, int], str]) -> None:
        """Find the descriptors of connections with those addresses."""
        with suppress(OSError):
            for descriptor in _sockets():
                with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
                    if _is_tcp(copy) and (peer := addresses.get(_named(copy.getpeername()))) is not None:
                        self._known[peer] = descriptor, copy.family


def _sockets() -> Iterator[int]:
    """The descriptors of this process that are sockets. Raises OSError without /proc."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                yield int(name)


def _is_tcp(found: socket.socket) -> bool:
    return found.family in (socket.AF_INET, socket.AF_INET6) and found.type is socket.SOCK_STREAM


def _named(address: Sequence[Any]) -> tuple[str, int]:
    # gRPC's sockets are of IPv6, and its names say IPv4 where it is that.
    return address[0].removeprefix("::ffff:"), address[1]


def _is(found: socket.socket, address: tuple[str, int]) -> bool:
    return _is_tcp(found) and _named(found.getpeername()) == address


def _end(found: socket.socket, last: bytes) -> None:
    with suppress(OSError):
        found.send(last, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    found.shutdown(socket.SHUT_RDWR)
    # What has arrived could still be read after that, and may be a hundred thousand calls.
    with suppress(BlockingIOError):
        while found.recv(_AT_ONCE, socket.MSG_DONTWAIT | socket.MSG_TRUNC):
            pass


def _address(peer: str) -> tuple[str, int] | None:
    """The host and port in gRPC's name for a peer; None for one without."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    host, _, port = unquote(rest).rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdecimal() else None
