"""Which regions may exist, who owns them, and that no access leaves one."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import InferdError, InvalidRequest, NotAllowed, RegionExists, RegionLimit, UnknownRegion
from inferd.shared_memory.regions import (
    MAX_KEY,
    MAX_NAME,
    Region,
    RegionLimits,
    RegionTable,
    check_name,
    check_own,
    check_span,
    is_accessible,
    object_name,
)

# All that the protocol can carry and more: unsigned and signed 64 bits, and sums of two.
NUMBERS = st.integers(-(2**65), 2**65) | st.sampled_from([0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64])


class NoMemory:
    """Memory that is never accessed."""

    def read(self, at: int, target: memoryview) -> None:
        raise NotImplementedError

    def write(self, at: int, data: bytes | memoryview) -> None:
        raise NotImplementedError

    def view(self, at: int, nbytes: int) -> memoryview | None:
        raise NotImplementedError


def region(owner: str, name: str, nbytes: int = 1, identity: tuple[int, int] = (1, 1)) -> Region:
    return Region(owner, name, f"/{name}", 0, nbytes, identity, NoMemory())


def raised(call: Callable[[], object]) -> InferdError | None:
    try:
        call()
    except InferdError as error:
        return error
    return None


# -- bounds -----------------------------------------------------------------------


@given(NUMBERS, NUMBERS, st.integers(0, 2**63 - 1))
def test_a_span_is_accepted_if_and_only_if_all_of_it_lies_inside(offset: int, nbytes: int, size: int) -> None:
    inside = offset >= 0 and nbytes >= 0 and offset + nbytes <= size
    assert (raised(lambda: check_span("region 'x'", offset, nbytes, size)) is None) == inside


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_span_inside_is_as_long_as_it_says(offset: int, nbytes: int, size: int) -> None:
    if raised(lambda: check_span("region 'x'", offset, nbytes, size)) is None:
        assert len(bytes(size)[offset : offset + nbytes]) == nbytes


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(2**64 - 1, 2), (1, 2**64 - 1), (2**64 - 8, 16), (2**63, 2**63), (-1, 1), (1, -1), (0, 11)]
)
def test_a_span_that_would_wrap_around_is_refused_with_its_numbers(offset: int, nbytes: int) -> None:
    with pytest.raises(InvalidRequest, match=r"region 'x': .* reach past its 10 bytes"):
        check_span("region 'x'", offset, nbytes, 10)


@given(st.integers(2**64, 2**5000))
def test_a_number_of_any_length_gives_a_short_sentence(number: int) -> None:
    error = raised(lambda: check_span("region 'x'", number, number, 10))
    assert error is not None
    assert len(str(error)) < 200


# -- names ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "input_0", "INPUT:0/weights_0_0", "../x", "x" * MAX_NAME])
def test_a_region_may_have_any_name_that_can_be_read(name: str) -> None:
    # It is never part of a path.
    check_name(name)


@pytest.mark.parametrize("name", ["", "x" * (MAX_NAME + 1), "a b", "a\nb", "a\0b", "é", "\x7f", "a" * 10_000_000])
def test_a_region_has_no_other_name(name: str) -> None:
    error = raised(lambda: check_name(name))
    assert isinstance(error, InvalidRequest)
    assert len(str(error)) < 250
    assert str(error).isprintable()


@pytest.mark.parametrize("key", ["/a", "a", "/psm_1f2e", "input:0", "..a", ".a", "x" * MAX_KEY])
def test_a_key_names_an_object(key: str) -> None:
    assert object_name(key) == key.removeprefix("/")


@pytest.mark.parametrize(
    "key", ["", "/", ".", "..", "/.", "/..", "../x", "/../x", "a/b", "//a", "/a/", "x" * (MAX_KEY + 1)]
)
@pytest.mark.parametrize("more", ["", "\0", "\n", " ", "é"])
def test_a_key_is_not_a_path(key: str, more: str) -> None:
    refused(key + more)


@pytest.mark.parametrize("key", ["sem.lock", "/sem.lock", "inferd", "/inferd-anything", "/INFERD_x", "/Inferd.x"])
def test_a_key_is_neither_a_semaphore_nor_reserved_for_the_server(key: str) -> None:
    refused(key)


def refused(key: str) -> None:
    error = raised(lambda: object_name(key))
    assert isinstance(error, InvalidRequest)
    assert len(str(error)) < 300
    assert "/dev" not in str(error)


@given(st.text(max_size=300))
def test_for_any_key_the_object_is_directly_in_the_folder(key: str) -> None:
    if raised(lambda: object_name(key)) is None:
        name = object_name(key)
        assert "/" not in name
        assert "\0" not in name
        assert name not in ("", ".", "..")
        assert len(name.encode()) <= MAX_KEY


# -- whose an object is -----------------------------------------------------------


@pytest.mark.parametrize("name", ["one+x", "one+", "shared-x"])
def test_a_client_has_the_keys_with_its_own_prefix(name: str) -> None:
    check_own("one", name, ("one+", "shared-"))


@pytest.mark.parametrize("name", ["two+x", "one", "one-x", "ONE+x", "x-one+", "oneself+x", "share"])
def test_a_client_has_no_other_keys(name: str) -> None:
    error = raised(lambda: check_own("one", name, ("one+", "shared-")))
    assert isinstance(error, NotAllowed)
    assert str(error) == f"the key '{name}' is not allowed; keys of the client 'one' begin with one+, shared-"


@given(st.integers(0, 0o777), st.booleans(), st.booleans())
def test_the_first_match_of_user_group_and_others_decides(mode: int, same_user: bool, same_group: bool) -> None:
    bits = mode >> 6 if same_user else mode >> 3 if same_group else mode
    assert is_accessible(mode, 7 if same_user else 8, 3 if same_group else 4, 7, {1, 3}) == (bits & 0o6 == 0o6)


def test_a_daemon_that_runs_as_root_uses_only_what_is_open_to_it() -> None:
    assert not is_accessible(0o600, 1000, 1000, 0, {0})
    assert is_accessible(0o606, 1000, 1000, 0, {0})
    assert is_accessible(0o600, 0, 0, 0, {0})


# -- the table --------------------------------------------------------------------


def test_each_owner_has_names_of_its_own() -> None:
    regions = RegionTable(RegionLimits())
    regions.add(region("a", "x", 1))
    regions.check_room("b", "x", 2)
    regions.add(region("b", "x", 2))

    assert regions.find("a", "x").nbytes == 1
    assert regions.find("b", "x").nbytes == 2
    assert [r.owner for r in regions.of("a")] == ["a"]
    with pytest.raises(UnknownRegion, match="no shared memory region 'x' is registered"):
        regions.find("c", "x")
    with pytest.raises(RegionExists, match="'x' is registered already"):
        regions.check_room("a", "x", 1)


def test_only_the_owners_regions_are_removed() -> None:
    regions = RegionTable(RegionLimits())
    for owner, name in itertools.product("ab", "xy"):
        regions.add(region(owner, name))
    regions.remove("c", "x")
    regions.remove("a", "x")
    assert [r.name for r in regions.of("a")] == ["y"]
    regions.remove_all("b")
    assert regions.of("b") == []
    assert [r.name for r in regions.of("a")] == ["y"]


def test_an_object_has_one_owner() -> None:
    regions = RegionTable(RegionLimits())
    regions.add(region("a", "x", identity=(1, 5)))
    regions.check_unclaimed("a", "/x", (1, 5))
    regions.check_unclaimed("b", "/x", (2, 5))
    with pytest.raises(InvalidRequest, match="there is no shared memory object '/x'"):
        regions.check_unclaimed("b", "/x", (1, 5))
    regions.remove("a", "x")
    regions.check_unclaimed("b", "/x", (1, 5))


def test_regions_and_bytes_are_limited() -> None:
    regions = RegionTable(RegionLimits(2, 100))
    regions.check_room("", "x", 100)
    with pytest.raises(RegionLimit, match=r"the limit is 100 bytes in all regions$"):
        regions.check_room("", "x", 101)
    regions.add(region("", "x", 60))
    with pytest.raises(RegionLimit, match=r"the limit is 100 bytes in all regions$"):
        regions.check_room("", "y", 2**64 - 1)
    regions.add(region("", "y", 40))
    with pytest.raises(RegionLimit, match=r"the limit is 2 regions$"):
        regions.check_room("", "z", 0)


def test_one_client_leaves_regions_and_bytes_for_others() -> None:
    regions = RegionTable(RegionLimits(8, 100))
    with pytest.raises(RegionLimit, match=r"the limit is 75 bytes in all regions of one client$"):
        regions.check_room("a", "x", 76)
    regions.add(region("a", "x", 75))
    with pytest.raises(RegionLimit, match=r"the limit is 18 bytes in all regions of one client$"):
        regions.check_room("b", "x", 19)
    regions.check_room("b", "x", 18)
    for number in range(5):
        regions.add(region("a", f"{number}", 0))
    with pytest.raises(RegionLimit, match=r"the limit is 6 regions of one client$"):
        regions.check_room("a", "y", 0)
    regions.add(region("b", "x", 18))
    with pytest.raises(RegionLimit, match=r"the limit is 1 regions of one client$"):
        regions.check_room("b", "y", 0)
    regions.check_room("c", "x", 0)
    # Room that a client frees is available to it and to others.
    for name, nbytes in (("x", 75), ("0", 0), ("1", 0)):
        regions.remove("a", name)
        regions.released("a", nbytes)
    regions.check_room("a", "z", 61)
    regions.check_room("b", "y", 57)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.booleans()), max_size=60))
def test_another_client_finds_room_whatever_one_registers(steps: list[tuple[str, int, bool]]) -> None:
    regions, held = RegionTable(RegionLimits(8, 100)), dict[str, list[int]]()
    for turn, (owner, nbytes, give_up) in enumerate(steps):
        if give_up and held.get(owner):
            regions.released(owner, held[owner].pop())
        elif not give_up and raised(lambda o=owner, t=turn, n=nbytes: regions.check_room(o, f"{t}", n)) is None:  # type: ignore[misc]
            regions.add(region(owner, f"{turn}", nbytes))
            held.setdefault(owner, []).append(nbytes)
        count, total = sum(map(len, held.values())), sum(map(sum, held.values()))
        assert count <= 8
        assert total <= 100
        if sum(map(bool, held.values())) == 1:
            assert count <= 6
            assert total <= 75
            assert raised(lambda: regions.check_room("d", "x", 18)) is None


def test_a_removed_region_counts_until_its_last_use_ends() -> None:
    regions = RegionTable(RegionLimits(1, 100))
    regions.add(region("a", "x", 60))
    regions.remove("a", "x")
    with pytest.raises(RegionLimit):
        regions.check_room("a", "x", 60)
    regions.released("a", 60)
    regions.check_room("a", "x", 75)
