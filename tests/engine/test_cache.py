"""The blob cache gives back exactly what was stored, or nothing."""

import fcntl
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from inferd.engine.cache import BlobCache, blob_key
from inferd.engine.runtime import ov
from tests.effort import examples

KEY = "ab" * 32
OTHER = "cd" * 32
MEGABYTE = 1 << 20
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache", MEGABYTE)


def files(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in (tmp_path / "cache").iterdir())


@contextmanager
def one_warning(event: str) -> Iterator[None]:
    with capture_logs() as logs:
        yield
    assert [(log["event"], log["log_level"]) for log in logs] == [(event, "warning")]


# -- the key ----------------------------------------------------------------------


def test_the_key_depends_on_content_and_facts() -> None:
    facts = {"openvino": "2026.4.1", "device": "CPU"}
    key = blob_key("one", facts)
    assert blob_key("one", dict(reversed(facts.items()))) == key
    assert len({key, blob_key("other", facts), blob_key("one", {"device": "CPU"})}) == 3


@given(a=st.dictionaries(st.text(), st.text()), b=st.dictionaries(st.text(), st.text()))
def test_different_facts_never_share_a_key(a: dict[str, str], b: dict[str, str]) -> None:
    assert (blob_key("", a) == blob_key("", b)) == (a == b)


# -- storing and loading ----------------------------------------------------------


@given(blob=st.binary(max_size=4096))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_stored_is_loaded(cache: BlobCache, blob: bytes) -> None:
    cache.store(KEY, blob)
    assert cache.load(KEY) == blob


def test_an_unknown_key_loads_nothing(cache: BlobCache) -> None:
    assert cache.load(KEY) is None
    cache.store(KEY, b"blob")
    assert cache.load(OTHER) is None


def test_the_folder_and_its_files_are_the_users_own(cache: BlobCache, tmp_path: Path) -> None:
    cache.store(KEY, b"blob")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache" / f"{KEY}.blob").stat().st_mode & 0o777 == 0o600


def test_a_cap_of_zero_switches_everything_off(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", 0)
    cache.store(KEY, b"blob")
    with cache.lock(KEY):
        assert cache.load(KEY) is None
    assert not cache.enabled
    assert not (tmp_path / "cache").exists()


@given(data=st.data(), blob=st.binary(min_size=1, max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_is_detected(tmp_path: Path, data: st.DataObject, blob: bytes) -> None:
    cache, file = BlobCache(tmp_path / "cache", MEGABYTE), tmp_path / "cache" / f"{KEY}.blob"
    cache.store(KEY, blob)
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    assert cache.load(KEY) is None
    assert not file.exists()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_or_grown_file_is_detected(tmp_path: Path, data: st.DataObject) -> None:
    cache, file = BlobCache(tmp_path / "cache", MEGABYTE), tmp_path / "cache" / f"{KEY}.blob"
    cache.store(KEY, b"blob" * 20)
    content = file.read_bytes()
    cut, tail = data.draw(st.integers(0, len(content) - 1)), data.draw(st.binary(min_size=1, max_size=20))
    file.write_bytes(data.draw(st.sampled_from([content[:cut], content + tail])))
    assert cache.load(KEY) is None


def test_another_keys_file_is_not_this_keys_blob(cache: BlobCache, tmp_path: Path) -> None:
    cache.store(OTHER, b"blob")
    (tmp_path / "cache" / f"{OTHER}.blob").rename(tmp_path / "cache" / f"{KEY}.blob")
    with one_warning("damaged cached blob discarded"):
        assert cache.load(KEY) is None
    assert files(tmp_path) == []


def test_a_removed_blob_can_be_stored_again(cache: BlobCache, tmp_path: Path) -> None:
    cache.store(KEY, b"blob")
    (tmp_path / "cache" / f"{KEY}.blob").write_bytes(b"no blob of inferd")
    assert cache.load(KEY) is None
    cache.store(KEY, b"blob")
    assert cache.load(KEY) == b"blob"


# -- the cap ----------------------------------------------------------------------


def aged(tmp_path: Path, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(tmp_path / "cache" / f"{key}.blob", (then, then))


def test_the_least_recently_used_blob_goes_first(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", 3500)
    for age, key in enumerate(["c", "b", "a"]):
        cache.store(key, b"x" * 1000)
        aged(tmp_path, key, 100.0 * (age + 1))
    assert cache.load("a") is not None  # the oldest, and now the last one used
    cache.store("d", b"x" * 1000)
    assert files(tmp_path) == ["a.blob", "c.blob", "d.blob"]


@given(sizes=st.lists(st.integers(0, 1500), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(50))
def test_the_folder_never_outgrows_its_cap_and_keeps_the_newest(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = BlobCache(folder, 2000)
    for number, size in enumerate(sizes):
        cache.store(str(number), b"x" * size)
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 2000
        assert cache.load(str(number)) == b"x" * size


def test_a_blob_over_the_cap_is_not_stored_and_evicts_nothing(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", 2000)
    cache.store(KEY, b"x" * 1000)
    with one_warning("blob not cached: larger than the whole cache"):
        cache.store(OTHER, b"x" * 2000)
    assert files(tmp_path) == [f"{KEY}.blob"]


# -- what goes wrong on disks -----------------------------------------------------


def test_a_folder_that_cant_be_made_costs_a_warning_each(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = BlobCache(tmp_path / "file" / "cache", MEGABYTE)
    with one_warning("cache not written"):
        cache.store(KEY, b"blob")
    with one_warning("cached blob not read"):
        assert cache.load(KEY) is None
    with one_warning("cache not locked"), cache.lock(KEY):
        pass


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", MEGABYTE)
    cache.store(OTHER, b"small")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # CPython ignores SIGXFSZ, so a write over the limit fails with EFBIG as one on a full disk does with ENOSPC.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with one_warning("cache not written"):
            cache.store(KEY, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == [f"{OTHER}.blob"]


def die_while_writing(folder: str) -> None:
    # The kernel kills the process at the 4096th byte of its blob.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    BlobCache(Path(folder), MEGABYTE).store(KEY, b"x" * 100_000)


def test_a_killed_writer_leaves_no_half_file_to_read(cache: BlobCache, tmp_path: Path) -> None:
    writer = spawn.Process(target=die_while_writing, args=(str(tmp_path / "cache"),))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGXFSZ
    assert [(file.suffix, file.stat().st_size) for file in (tmp_path / "cache").iterdir()] == [(".part", 4096)]
    assert cache.load(KEY) is None


def test_leftovers_go_after_an_hour_and_not_before(cache: BlobCache, tmp_path: Path) -> None:
    cache.store(KEY, b"blob")
    for name, age in (("old.part", 3700), ("old.lock", 3700), ("young.part", 3500), ("notes.txt", 10**6)):
        (tmp_path / "cache" / name).write_text("")
        then = time.time() - age
        os.utime(tmp_path / "cache" / name, (then, then))
    cache.store(KEY, b"blob")
    assert files(tmp_path) == [f"{KEY}.blob", "notes.txt", "young.part"]


# -- the lock ---------------------------------------------------------------------


def build_once(folder: str, start: Connection, result: Connection) -> None:
    cache = BlobCache(Path(folder), MEGABYTE)
    result.send("ready")
    start.recv()
    with cache.lock(KEY):
        built = cache.load(KEY) is None
        if built:
            cache.store(KEY, b"blob")
    result.send(built)


def test_of_two_processes_exactly_one_builds(tmp_path: Path) -> None:
    workers = []
    for _ in range(2):
        (start, started), (result, done) = spawn.Pipe(), spawn.Pipe()
        process = spawn.Process(target=build_once, args=(str(tmp_path), started, done))
        process.start()
        workers.append((process, start, result))
    for _, _, result in workers:
        assert result.recv() == "ready"
    for _, start, _ in workers:
        start.send("go")
    built = [result.recv() for _, _, result in workers]
    for process, _, _ in workers:
        process.join()
    assert sorted(built) == [False, True]
    assert [file.name for file in tmp_path.iterdir()] == [f"{KEY}.blob"]


def hold(folder: str, ready: Connection) -> None:
    with BlobCache(Path(folder), MEGABYTE).lock(KEY):
        ready.send("held")
        ready.recv()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process of its own that holds KEY's lock in tmp_path / "cache"."""
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=hold, args=(str(tmp_path / "cache"), theirs))
    process.start()
    assert ours.recv() == "held"
    yield process
    process.kill()
    process.join()


@pytest.mark.usefixtures("held")
def test_a_lock_held_elsewhere_is_given_up_after_the_timeout(cache: BlobCache) -> None:
    with one_warning("gave up waiting for another build of the same blob"), cache.lock(KEY, timeout=0.2):
        pass


def test_a_killed_holder_blocks_no_one_else(held: multiprocessing.process.BaseProcess, cache: BlobCache) -> None:
    held.kill()
    held.join()
    with capture_logs() as logs, cache.lock(KEY, timeout=60):
        pass
    assert logs == []


@pytest.mark.usefixtures("held")
def test_another_keys_lock_is_free(cache: BlobCache) -> None:
    with capture_logs() as logs, cache.lock(OTHER, timeout=0):
        pass
    assert logs == []


def test_a_lock_is_truly_held_and_leaves_no_file(cache: BlobCache, tmp_path: Path) -> None:
    with cache.lock(KEY), (tmp_path / "cache" / f"{KEY}.lock").open() as same, pytest.raises(BlockingIOError):
        fcntl.flock(same, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert files(tmp_path) == []


def test_an_error_in_the_body_releases_the_lock(cache: BlobCache, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), cache.lock(KEY):
        raise ZeroDivisionError
    assert files(tmp_path) == []


# -- with OpenVINO ----------------------------------------------------------------


def test_one_blob_serves_another_number_of_streams_with_equal_outputs(cache: BlobCache) -> None:
    x = ov.opset13.parameter([1, 64], np.float32, name="x")
    weights = np.random.default_rng(5).standard_normal((64, 64)).astype(np.float32)
    model = ov.Model([ov.opset13.relu(ov.opset13.matmul(x, weights, False, False))], [x], "tiny")
    core, sample = ov.Core(), np.random.default_rng(6).standard_normal((1, 64)).astype(np.float32)
    properties = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 2}
    compiled = core.compile_model(model, "CPU", properties | {"NUM_STREAMS": 1})
    cache.store(KEY, compiled.export_model().getbuffer())
    blob = cache.load(KEY)
    assert blob is not None
    # As many streams as there are threads at most, and threads are clamped to the CPUs.
    streams = compiled.get_property("INFERENCE_NUM_THREADS")
    imported = core.import_model(blob, "CPU", properties | {"NUM_STREAMS": streams})
    assert imported.get_property("NUM_STREAMS") == streams
    np.testing.assert_array_equal(imported(sample)[0], compiled(sample)[0])


# -- marks --------------------------------------------------------------------------


def test_a_mark_is_seen_by_every_process_that_shares_the_folder(cache: BlobCache) -> None:
    assert not cache.marked(KEY)
    cache.mark(KEY)
    assert BlobCache(cache.directory, MEGABYTE).marked(KEY)
    assert not cache.marked(OTHER)
    assert cache.load(KEY) is None


def test_marks_outlast_pruning_until_unused_for_a_season(cache: BlobCache) -> None:
    for key in (KEY, OTHER):
        cache.mark(key)
    long_ago = time.time() - 91 * 86400
    for key in (KEY, OTHER):
        os.utime(cache.directory / f"{key}.passed", (long_ago, long_ago))
    assert cache.marked(KEY)
    cache.store(KEY, b"blob")
    assert cache.marked(KEY)
    assert not cache.marked(OTHER)


def test_a_cache_that_is_off_or_cannot_be_written_marks_nothing(cache: BlobCache) -> None:
    off = BlobCache(cache.directory, 0)
    off.mark(KEY)
    assert not cache.directory.exists()
    cache.directory.write_text("in the way")
    with one_warning("cache not written"):
        cache.mark(KEY)
    assert not cache.marked(KEY)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_blob_that_would_block_its_reader_is_replaced(
    cache: BlobCache, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    cache.store(KEY, b"blob")
    (file,) = (tmp_path / "cache").glob("*.blob")
    file.unlink()
    make(file)
    with one_warning("cached blob not read"):
        assert cache.load(KEY) is None
    cache.store(KEY, b"blob")
    assert cache.load(KEY) == b"blob"


def test_a_blob_larger_than_the_whole_cache_is_not_read(cache: BlobCache, tmp_path: Path) -> None:
    cache.store(KEY, b"blob")
    (file,) = (tmp_path / "cache").glob("*.blob")
    os.truncate(file, 100 << 30)
    with one_warning("cached blob not read"):
        assert cache.load(KEY) is None
