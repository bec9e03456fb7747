"""Real objects: which may be registered, reading and writing them, and surviving what their makers do."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from inferd.errors import InferdError, InvalidRequest, NotAllowed, RegionExists, RegionLimit, UnknownRegion
from inferd.shared_memory.regions import RegionLimits, Span
from inferd.shared_memory.store import RegionStore
from tests.shared_memory.objects import FOLDER, SharedObject, shared_object

PAGE = os.sysconf("SC_PAGESIZE")
LARGE = 64 * PAGE


@pytest.fixture(params=[False, True], ids=["copied", "mapped"])
def store(request: pytest.FixtureRequest) -> RegionStore:
    return RegionStore(RegionLimits(8, 1 << 30), mapped=request.param)


@pytest.fixture
def made() -> Iterator[SharedObject]:
    with shared_object(LARGE) as one:
        yield one


def open_files() -> int:
    """This process's descriptors and mappings of shared memory objects."""
    descriptors = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd))
    mappings = Path("/proc/self/maps").read_text().count("/dev/shm/test-")
    return sum(name.startswith("/dev/shm/test-") for name in descriptors) + mappings


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InferdError) as refused:
        call()
    assert str(FOLDER) not in str(refused.value)
    assert refused.value.__cause__ is None
    return str(refused.value)


NONE = "there is no shared memory object '{}' that this server may read and write"


def test_a_placed_tensor_is_read_and_written_in_place(store: RegionStore, made: SharedObject) -> None:
    store.register("me", "x", made.key, 100, 1000)
    made.write(b"before-it", 91)
    made.write(b"0123456789", 100 + 50)
    placed = store.locate("me", Span("x", 50, 10))

    assert (placed.region, len(placed)) == ("x", 10)
    assert placed.copied() == b"0123456789"
    target = bytearray(10)
    placed.read_into(memoryview(target))
    assert target == b"0123456789"
    placed.write(b"ab")
    placed.write(memoryview(b"AB").cast("B"))
    for nothing in (b"", memoryview(np.empty((0, 4), np.float32)), memoryview(np.empty((2, 0)))):
        placed.write(nothing)
    assert made.read(10, 150) == b"AB23456789"
    assert made.read(9, 91) == b"before-it"


def test_only_large_aligned_mapped_memory_is_used_in_place(made: SharedObject) -> None:
    copied, mapped = (RegionStore(RegionLimits(), mapped=m) for m in (False, True))
    for one in (copied, mapped):
        one.register("", "x", made.key, 64, LARGE - 64)
    large = LARGE // 2

    assert copied.locate("", Span("x", 0, large)).view() is None
    assert mapped.locate("", Span("x", 1, large)).view() is None
    assert mapped.locate("", Span("x", 32, large)).view() is None
    assert mapped.locate("", Span("x", 0, 64)).view() is None
    view = mapped.locate("", Span("x", PAGE, large)).view()
    assert view is not None
    made.write(b"seen", 64 + PAGE)
    assert bytes(view[:4]) == b"seen"
    view[:4] = b"back"
    assert made.read(4, 64 + PAGE) == b"back"
    assert len(view) == large


def test_a_region_may_be_registered_again_after_its_removal(store: RegionStore, made: SharedObject) -> None:
    store.register("me", "x", made.key, 0, 10)
    with pytest.raises(RegionExists):
        store.register("me", "x", made.key, 0, 10)
    store.unregister("me", "x")
    store.register("me", "x", made.key, 5, 20)
    assert [(r.name, r.key, r.offset, r.nbytes) for r in store.regions("me")] == [("x", made.key, 5, 20)]
    with pytest.raises(UnknownRegion):
        store.regions("me", "y")


def test_refused_and_removed_regions_leave_nothing_open(store: RegionStore, made: SharedObject) -> None:
    before = open_files()
    refusal(lambda: store.register("me", "x", made.key, 0, LARGE + 1))
    refusal(lambda: store.register("me", "x", "/test-absent", 0, 1))
    assert open_files() == before
    for name in "xyz":
        store.register("me", name, made.key, 3 * PAGE, 10)
    assert open_files() > before
    store.unregister("me")
    assert open_files() == before


def test_memory_is_kept_while_a_request_uses_it(store: RegionStore, made: SharedObject) -> None:
    before = open_files()
    store.register("me", "x", made.key, 0, LARGE)
    placed = store.locate("me", Span("x", 0, LARGE))
    view = placed.view()
    store.unregister("me", "x")
    made.write(b"still here")
    made.path.unlink()

    with pytest.raises(UnknownRegion):
        store.locate("me", Span("x", 0, 1))
    assert placed.copied()[:10] == b"still here"
    if view is not None:
        del placed
        assert bytes(view[:10]) == b"still here"
    else:
        del placed
    del view
    assert open_files() == before


def test_a_region_still_in_use_counts_against_the_limits(made: SharedObject) -> None:
    store = RegionStore(RegionLimits(1, LARGE), mapped=False)
    store.register("", "x", made.key, 0, LARGE)
    placed = store.locate("", Span("x", 0, 1))
    store.unregister("", "x")
    with pytest.raises(RegionLimit, match="the limit is 1 regions"):
        store.register("you", "y", made.key, 0, 1)
    del placed
    store.register("", "y", made.key, 0, LARGE)


def test_repeated_look_ups_return_the_same_objects_until_a_region_is_removed(
    store: RegionStore, made: SharedObject
) -> None:
    before = open_files()
    spans = (Span("x", 0, 8), Span("y", 2, 4))
    store.register("me", "x", made.key, 0, 10)
    with pytest.raises(UnknownRegion):
        store.locate_all("me", spans)
    store.register("me", "y", made.key, 20, 10)
    first = store.locate_all("me", spans)
    assert first == tuple(store.locate("me", span) for span in spans)
    assert all(one is other for one, other in zip(first, store.locate_all("me", spans), strict=True))
    with pytest.raises(UnknownRegion):
        store.locate_all("you", spans)

    store.unregister("me", "y")
    with pytest.raises(UnknownRegion):
        store.locate_all("me", spans)
    store.register("me", "y", made.key, 40, 6)
    made.write(b"next", 42)
    assert store.locate_all("me", spans)[1].copied() == b"next"
    store.unregister("me", "y")
    store.register("me", "y", made.key, 40, 5)
    with pytest.raises(InvalidRequest, match=r"region 'y': 4 bytes from offset 2 on reach past its 5 bytes"):
        store.locate_all("me", spans)
    del first
    store.unregister("me")
    assert open_files() == before


def test_the_cache_is_bounded_and_keeps_no_region_alive(store: RegionStore, made: SharedObject) -> None:
    before = open_files()
    store.register("me", "x", made.key, 0, LARGE)
    for offset in range(5000):
        assert store.locate_all("me", (Span("x", offset, 1),))[0].offset == offset
    assert len(store._located) <= 1024
    store.unregister("me", "x")
    assert open_files() == before


# -- what may be registered -------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [(0, LARGE + 1), (LARGE, 1), (1, LARGE), (2**64 - 1, 1), (2**64 - 1, 2), (2**63, 1), (LARGE + 1, 1)],
)
def test_a_region_lies_within_its_object(store: RegionStore, made: SharedObject, offset: int, nbytes: int) -> None:
    said = refusal(lambda: store.register("me", "x", made.key, offset, nbytes))
    assert re.search(rf"region 'x': .* reach past its {LARGE} bytes", said)
    assert store.regions("me") == []


@pytest.mark.parametrize("nbytes", [2**64 - 1, 2**63, (1 << 30) + 1])
def test_a_size_beyond_all_limits_is_refused_before_opening_the_object(store: RegionStore, nbytes: int) -> None:
    with pytest.raises(RegionLimit):
        store.register("me", "x", "/test-absent", 0, nbytes)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 101), (100, 1), (101, 0), (2**63 - 1, 2**63 - 1), (-1, 1), (0, -1)])
def test_a_tensor_lies_within_its_region(store: RegionStore, made: SharedObject, offset: int, nbytes: int) -> None:
    store.register("me", "x", made.key, 0, 100)
    with pytest.raises(InvalidRequest, match=r"region 'x': .* reach past its 100 bytes"):
        store.locate("me", Span("x", offset, nbytes))


def test_an_empty_region_is_refused(store: RegionStore, made: SharedObject) -> None:
    with pytest.raises(InvalidRequest, match="region 'x' needs at least 1 byte"):
        store.register("me", "x", made.key, 0, 0)


def test_a_missing_object_is_not_created(store: RegionStore) -> None:
    assert refusal(lambda: store.register("me", "x", "/test-absent", 0, 1)) == NONE.format("/test-absent")
    assert not (FOLDER / "test-absent").exists()


def test_links_folders_and_pipes_are_not_objects(store: RegionStore, made: SharedObject, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    others = [FOLDER / f"{made.name}-{kind}" for kind in ("link", "folder", "pipe", "to-it")]
    link, folder, pipe, to_it = others
    try:
        link.symlink_to(secret)
        to_it.symlink_to(made.path)
        folder.mkdir()
        os.mkfifo(pipe)
        for other in others:
            assert refusal(lambda key=other.name: store.register("me", "x", key, 0, 1)) == NONE.format(other.name)  # type: ignore[misc]
    finally:
        folder.rmdir()
        for other in (link, pipe, to_it):
            other.unlink()


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o400, 0o066])
def test_an_object_not_open_to_this_user_is_not_used_even_by_root(store: RegionStore, mode: int) -> None:
    # Root can open anything.
    with shared_object(10) as closed:
        os.fchmod(closed.descriptor, mode)
        assert refusal(lambda: store.register("me", "x", closed.key, 0, 1)) == NONE.format(closed.key)


def test_another_clients_object_looks_as_if_it_did_not_exist(store: RegionStore, made: SharedObject) -> None:
    store.register("me", "x", made.key, 0, 10)
    absent = refusal(lambda: store.register("you", "x", "/test-absent", 0, LARGE + 1))
    same = refusal(lambda: store.register("you", "x", made.key, 0, LARGE + 1))
    assert same == absent.replace("/test-absent", made.key)
    assert store.regions("you") == []


def test_an_object_under_another_clients_key_is_not_even_looked_for(store: RegionStore, made: SharedObject) -> None:
    for key in (made.key, "/test-absent"):
        with pytest.raises(
            NotAllowed, match=f"the key '{key[1:]}' is not allowed; keys of the client 'you' begin with"
        ):
            store.register("you", "x", key, 0, LARGE + 1, ("you+",))
    with shared_object(10, owner="you") as own:
        store.register("you", "x", own.key, 0, 10, ("you+",))


def test_an_object_with_another_name_is_not_used(store: RegionStore, made: SharedObject) -> None:
    link = FOLDER / f"you+{made.name}"
    link.hardlink_to(made.path)
    try:
        for key in (link.name, made.key):
            assert refusal(lambda key=key: store.register("you", "x", key, 0, 10)) == NONE.format(key)  # type: ignore[misc]
    finally:
        link.unlink()
    store.register("me", "x", made.key, 0, 10)


def test_another_client_can_not_use_see_or_remove_a_region(store: RegionStore, made: SharedObject) -> None:
    store.register("me", "x", made.key, 0, 10)
    with pytest.raises(UnknownRegion):
        store.locate("you", Span("x", 0, 1))
    with pytest.raises(UnknownRegion):
        store.regions("you", "x")
    assert store.regions("you") == []
    store.unregister("you", "x")
    store.unregister("you")
    store.unregister("")
    assert len(store.regions("me")) == 1


# -- what its maker does ----------------------------------------------------------


def test_truncated_memory_is_an_error_and_does_not_end_the_process(store: RegionStore, made: SharedObject) -> None:
    store.register("me", "x", made.key, 0, LARGE)
    placed = store.locate("me", Span("x", PAGE, LARGE - PAGE))
    made.truncate(2 * PAGE)
    for use in (placed.copied, lambda: placed.write(b"x")):
        assert refusal(use) == "region 'x' is larger than its shared memory object, which has shrunk"
    made.truncate(0)
    assert "larger than" in refusal(placed.copied)
    made.truncate(LARGE)
    assert placed.copied() == bytes(LARGE - PAGE)


def test_truncated_memory_is_not_used_in_place(made: SharedObject) -> None:
    store = RegionStore(RegionLimits(), mapped=True)
    store.register("me", "x", made.key, 0, LARGE)
    placed = store.locate("me", Span("x", 0, LARGE))
    assert placed.view() is not None
    made.truncate(LARGE - 1)
    assert refusal(placed.view) == "region 'x' is larger than its shared memory object, which has shrunk"


def test_writing_never_enlarges_an_object(store: RegionStore, made: SharedObject) -> None:
    store.register("me", "x", made.key, 0, LARGE)
    made.truncate(LARGE - 1)
    refusal(lambda: store.locate("me", Span("x", 0, 2)).write(b"xy"))
    assert os.fstat(made.descriptor).st_size == LARGE - 1
    assert made.read(2) == b"\0\0"


def test_an_object_unlinked_by_its_maker_stays_usable(store: RegionStore, made: SharedObject) -> None:
    store.register("me", "x", made.key, 0, 10)
    made.path.unlink()
    made.write(b"unlinked")
    assert store.locate("me", Span("x", 0, 8)).copied() == b"unlinked"
    with shared_object(4) as other:
        os.rename(other.path, made.path)
        other.write(b"new!")
        assert store.locate("me", Span("x", 0, 8)).copied() == b"unlinked"
