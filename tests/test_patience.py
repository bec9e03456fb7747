"""Work under a time limit: it gives up on what hangs, bounds what is left behind, and never holds up the process."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from inferd import patience
from inferd.patience import hung, limited, mark

SOON = 0.05


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Work that waits for it hangs until the test has ended."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name == "patience":
            thread.join(10)
    assert hung() == []


def waits(event: threading.Event, at: str = "") -> object:
    mark(at)
    return event.wait()


def test_it_returns_and_raises_what_the_work_does() -> None:
    def fails() -> None:
        raise KeyError("k")

    assert limited("a file", lambda: 3) == 3
    with pytest.raises(KeyError, match="k"):
        limited("a file", fails)


def test_work_that_hangs_is_given_up_and_named(released: threading.Event) -> None:
    with pytest.raises(TimeoutError) as raised:
        limited("a model", lambda: waits(released, "1/weights.bin"), SOON)
    assert raised.value.strerror == "no answer for 0.05 s from 1/weights.bin"
    assert hung() == ["1/weights.bin"]


def test_a_purpose_hangs_on_one_thread_and_works_again_later(released: threading.Event) -> None:
    with pytest.raises(TimeoutError):
        limited("one", lambda: waits(released), SOON)
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(TimeoutError, match="still waiting for one"):
            limited("one", lambda: 1)
    assert threading.active_count() == before
    assert limited("another", lambda: 2) == 2

    (hanging,) = (thread for thread in threading.enumerate() if thread.name == "patience")
    released.set()
    hanging.join(10)
    assert limited("one", lambda: 3) == 3


def test_few_purposes_hang_at_a_time(released: threading.Event) -> None:
    for number in range(patience._MOST_HUNG):
        with pytest.raises(TimeoutError, match="no answer"):
            limited(str(number), lambda: waits(released), 0.01)
    with pytest.raises(TimeoutError, match="not tried"):
        limited("one more", lambda: 1)


def test_progress_restarts_the_time() -> None:
    limit = 0.5
    end = time.monotonic() + 2 * limit

    def slow() -> str:
        while time.monotonic() < end:
            mark()
        return "done"

    assert limited("a slow disk", slow, limit) == "done"


def test_inside_of_limited_work_the_outer_limit_holds() -> None:
    def inner() -> threading.Thread:
        return threading.current_thread()

    assert limited("outer", lambda: limited("inner", inner, 0.0) is threading.current_thread())


def test_hung_work_does_not_keep_the_process_from_ending() -> None:
    code = f"""
import threading
from inferd.patience import limited
try:
    limited("x", threading.Event().wait, {SOON})
except TimeoutError:
    print("gave up")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith("gave up\n")
