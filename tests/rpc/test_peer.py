"""Who is at the other end of a connection: on this machine or not, and the owner of the state its calls leave."""

import pytest

from inferd.errors import InvalidRequest
from inferd.rpc.peer import MAX_CLIENT_NAME, is_local, tenant


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:50000", True),
        ("ipv4:127.8.9.1:1", True),
        ("ipv6:%5B::1%5D:50000", True),
        ("ipv6:[::1]:50000", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:50000", True),
        ("unix:", True),
        ("unix:/run/x.sock", True),
        ("ipv4:10.0.0.7:50000", False),
        ("ipv4:172.17.0.1:127", False),
        ("ipv6:%5B2001:db8::1%5D:50000", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", False),
        ("ipv6:%5B::ffff:10.0.0.7%5D:50000", False),
        ("vsock:2:1", False),
        ("", False),
        ("127.0.0.1:1", False),
    ],
)
def test_only_callers_on_this_machine_are_local(peer: str, local: bool) -> None:
    assert is_local(peer) == local


LOCAL = (
    "ipv4:127.0.0.1:50000",
    "ipv4:127.0.0.1:50001",
    "ipv6:%5B::1%5D:50000",
    "ipv6:%5B::ffff:127.0.0.1%5D:1",
    "unix:",
)


def test_a_client_with_a_proved_name_is_known_by_it_from_any_host() -> None:
    assert {tenant(peer, said, "a") for peer in (*LOCAL, "ipv4:10.0.0.7:1", "?") for said in ("", "b")} == {"a"}


def test_all_nameless_callers_on_this_machine_are_one_client() -> None:
    assert {tenant(peer, "") for peer in LOCAL} == {""}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ipv4:10.0.0.7:1", "ipv4:10.0.0.7:2"),
        ("ipv4:10.0.0.7:1", "ipv6:%5B::ffff:10.0.0.7%5D:1"),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:[2001:db8::1]:2"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "ipv6:%5Bfe80::1%25eth1%5D:2"),
    ],
)
def test_another_connection_of_the_same_host_is_the_same_client(one: str, other: str) -> None:
    assert tenant(one, "") == tenant(other, "")
    assert tenant(one, "a") == tenant(other, "a")


def test_hosts_and_names_that_differ_are_different_clients() -> None:
    peers = ("ipv4:127.0.0.1:1", "ipv4:10.0.0.7:1", "ipv4:10.0.0.8:1", "ipv6:%5B2001:db8::1%5D:1", "vsock:2:1", "")
    names = ("", "a", "b", "10.0.0.7", "10.0.0.7 a", " a")
    known = [tenant(peer, name) for peer in peers for name in names]
    assert len(set(known)) == len(known)


def test_a_name_that_is_too_long_to_keep_is_refused() -> None:
    assert tenant("unix:", "a" * MAX_CLIENT_NAME)
    with pytest.raises(InvalidRequest, match="name has 256 characters; at most 255 are allowed in a sequence"):
        tenant("unix:", "a" * (MAX_CLIENT_NAME + 1))
