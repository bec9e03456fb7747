"""Who is at the other end of a connection, as far as the connection tells."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote

from inferd.errors import InvalidRequest

# The longest name of a client that is stored.
MAX_CLIENT_NAME = 255


@lru_cache(1024)
def is_local(peer: str) -> bool:
    """Whether ``peer``, as gRPC names the other end of a connection, is on this machine; cached for recent callers, as
    each request asks."""
    if peer.startswith("unix:"):
        return True
    host = _address(peer)
    return host is not None and host.is_loopback


def tenant(peer: str, said: str, principal: str = "") -> str:
    """The owner of the state that a call over ``peer`` leaves on the server, for a client that has ``said`` its name,
    or nothing, and that has proven to be ``principal``, if it has.

    That is the name it has proved, wherever it calls from. Without authentication it is the host that it
    calls from, without the port (a client may have several connections, and reconnects), and within that host the
    name it claims, which is unverified. "" is a client on this machine without a name. Raises
    InvalidRequest if the name is too long to store.
    """
    if principal:
        return principal
    if len(said) > MAX_CLIENT_NAME:
        raise InvalidRequest(
            "", f"the client's name has {len(said)} characters; at most {MAX_CLIENT_NAME} are allowed in a sequence"
        )
    host = _host(peer)
    # A host never contains a space.
    return f"{host} {said}" if host or said else ""


def _host(peer: str) -> str:
    """The host of ``peer``, "" for this machine; the whole of it if it is no address, to keep such peers apart."""
    if is_local(peer):
        return ""
    return str(_address(peer) or peer.replace(" ", "_") or "?")


def _address(peer: str) -> IPv4Address | IPv6Address | None:
    """The address without port and zone; None if there is none."""
    try:
        host = ip_address(unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return mapped or host
