"""Closing one of gRPC's connections, for which gRPC has no function: by its socket, which is this process's too."""

import os
import socket
from contextlib import suppress
from urllib.parse import unquote

_AT_ONCE = 1 << 20


def close(peer: str, last: bytes = b"") -> bool:
    """Close this process's TCP connection with ``peer``, named as gRPC names it (``ipv4:127.0.0.1:5000``), after
    sending ``last`` as far as it can be sent at once; what the peer has sent is thrown away.

    False if there is none, as for a peer on a Unix socket, which has no name. Raises OSError without /proc.
    """
    if (address := _address(peer)) is None:
        return False
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            # The copy is closed here, gRPC's own descriptor by gRPC, which reads the end.
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if _is(copy, address):
                    _end(copy, last)
                    return True
    return False


def _is(found: socket.socket, address: tuple[str, int]) -> bool:
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type is not socket.SOCK_STREAM:
        return False
    host, port, *_ = found.getpeername()
    # gRPC's sockets are of IPv6, and its names say IPv4 where it is that.
    return (host.removeprefix("::ffff:"), port) == address


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
