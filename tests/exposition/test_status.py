"""The status page by itself: its allowed content, and the readings that it shows."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from threading import Event

import pytest
from structlog.testing import capture_logs

from inferd.exposition.status import Page, Status
from inferd.metrics.snapshot import ServerSnapshot
from tests.conftest import ROOT
from tests.metrics.made_up import model, server

HOSTILE = '</script><script>alert(1)</script>"\\\u2028'


@contextmanager
def started(read: Callable[[], ServerSnapshot], interval: float = 3600.0) -> Iterator[Status]:
    status = Status(read, interval)
    status.start()
    try:
        yield status
    finally:
        status.stop()


def body(status: Status, since: int = 0) -> dict:
    answer = status.body(since)
    assert answer is not None
    return json.loads(answer)


# -- readings ---------------------------------------------------------------------


def test_there_are_figures_from_the_start_on() -> None:
    with started(lambda: server(100, [model(HOSTILE, waiting=3)])) as status:
        seen = body(status)
    assert (seen["service"], seen["sequence"], seen["phase"], seen["version"]) == ("inferd", 1, "ready", "1.2.3")
    assert [(m["model"], m["waiting"]) for m in seen["models"]] == [(HOSTILE, 3)]
    assert seen["age"] >= 0


def test_before_the_start_there_are_none() -> None:
    assert Status(server).body() is None


def test_it_reads_again_and_again_and_gives_what_is_new() -> None:
    numbers, enough = count(1), Event()

    def read() -> ServerSnapshot:
        number = next(numbers)
        if number == 4:
            enough.set()
        return server(number, [model(outcomes={"ok": 10 * number})])

    with started(read, interval=0.001) as status:
        assert enough.wait(60)
    # The fourth may not have been taken in; after the stop nothing moves any more.
    seen = body(status)
    assert seen["sequence"] >= 3
    assert set(seen["models"][0]["history"]["answered"]) == {10.0}
    assert len(seen["models"][0]["history"]["answered"]) == seen["sequence"] - 1
    newer = body(status, seen["sequence"] - 1)
    assert newer["models"][0]["history"]["answered"] == [10.0]
    assert body(status, seen["sequence"])["models"][0]["history"]["answered"] == []
    assert body(status)["sequence"] == seen["sequence"]


def test_a_reading_that_fails_is_logged_once_of_a_kind_and_does_not_end_it() -> None:
    numbers, enough = count(1), Event()

    def read() -> ServerSnapshot:
        number = next(numbers)
        if number in (2, 3):
            raise KeyError("gone")
        if number == 4:
            raise ZeroDivisionError
        if number == 7:
            enough.set()
        return server(number)

    with capture_logs() as logged, started(read, interval=0.001) as status:
        assert enough.wait(60)
    assert [(line["event"], line["log_level"]) for line in logged] == [("status page snapshot failed", "error")] * 2
    assert body(status)["sequence"] >= 3


def test_while_none_could_be_read_there_are_none() -> None:
    def read() -> ServerSnapshot:
        raise OSError

    with capture_logs(), started(read) as status:
        assert status.body() is None


def test_it_may_be_stopped_twice_and_before_it_was_started() -> None:
    status = Status(server)
    status.stop()
    with started(server) as status:
        status.stop()


# -- the page ---------------------------------------------------------------------


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page.read()


def test_the_policy_allows_this_script_and_this_style_and_no_other(page: Page) -> None:
    directives = dict(part.split(" ", 1) for part in page.policy.split("; "))
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert directives == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_the_page_stands_by_itself(page: Page) -> None:
    for tag, attributes in Elements(page.body.decode()).found:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form"}
        assert "src" not in attributes
        # A style of its own, or a handler, would be kept from working by the policy.
        assert not {name for name in attributes if name == "style" or name.startswith("on")}
        if tag == "link":
            assert str(attributes["href"]).startswith("data:")
        elif "href" in attributes:
            assert attributes["href"] in {"metrics", "readyz", "status.json"}


def test_what_comes_from_the_server_never_becomes_markup(page: Page) -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval", "Function(", "DOMParser"):
        assert way not in page.body.decode()


def test_each_column_has_an_explanation(page: Page) -> None:
    text = page.body.decode()
    heads = re.findall(r"<th [^>]*>(.*?)</th>", text)
    assert re.findall(r"<dt>(.*?)</dt><dd>", text.partition('<dl id="legend">')[2]) == heads


def test_the_page_is_small(page: Page) -> None:
    assert len(page.body) < 40_000


def test_the_page_is_in_the_wheel(page: Page, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "NO_COLOR": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert packed.read("inferd/exposition/status.html") == page.body
