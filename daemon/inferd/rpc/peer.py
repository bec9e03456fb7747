"""Who is at the other end of a connection, as far as the connection says."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote

from inferd.errors import InvalidRequest
from inferd.rpc.gate import PRINCIPAL

# What a client may call itself where that is kept.
MAX_CLIENT_NAME = 255


@lru_cache(1024)
def is_local(peer: str) -> bool:
    """Whether ``peer``, as gRPC names the other end of a connection, is on this machine; remembered for those that have
    called of late, as it is asked for each request."""
    if peer.startswith("unix:"):
        return True
    host = _address(peer)
    return host is not None and host.is_loopback


def tenant(peer: str, said: str) -> str:
    """Whose the states are that a call over ``peer`` leaves with the server, for a client that has ``said`` its name,
    or nothing.

    That is the name it has proved, from wherever it calls. Where no client has to prove one it is the host that it
    calls from, without the port (a client may have several connections, and connects again), and on that host the
    name it says, which is worth no more than its word. "" is a client on this machine that says nothing. Raises
    InvalidRequest where the name is too long to keep.
    """
    if proved := PRINCIPAL.get():
        return proved
    if len(said) > MAX_CLIENT_NAME:
        raise InvalidRequest(
            "", f"the client's name has {len(said)} characters; at most {MAX_CLIENT_NAME} are allowed in a sequence"
        )
    host = _host(peer)
    # No host has a space in it.
    return f"{host} {said}" if host or said else ""


def _host(peer: str) -> str:
    """The host of ``peer``, "" for this machine; all of it where that is no address, so that such are told apart."""
    if is_local(peer):
        return ""
    return str(_address(peer) or peer.replace(" ", "_") or "?")


def _address(peer: str) -> IPv4Address | IPv6Address | None:
    """The address without port and zone; None where there is none."""
    try:
        host = ip_address(unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return mapped or host
