"""The status page in a real browser: of the real daemon under load, and with synthetic figures for rare states."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from prometheus_client import CollectorRegistry

from inferd.exposition.exporter import Exporter, Pages
from inferd.exposition.status import Status
from inferd.metrics.snapshot import VersionSnapshot
from inferd.tensors import DType
from tests import models
from tests.metrics import made_up
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.wire import connect, echo, method, request, steps

pytestmark = pytest.mark.system

CHROMIUM = "/usr/bin/chromium"
PATIENCE = 60_000  # milliseconds
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if shutil.which(CHROMIUM) is None:
        if "CI" in os.environ:
            pytest.fail(f"{CHROMIUM} is missing")
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        # What Chromium asks its maker by itself is no part of what the page does.
        quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet]
        )
        yield launched
        launched.close()


class Seen:
    """What a page said on its console and asked for."""

    def __init__(self, page: Page) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda asked: self.asked.append(asked.url))


@contextmanager
def looking(browser: Browser, address: str, width: int = 1280, scheme: str = "light") -> Iterator[tuple[Page, Seen]]:
    """The page of the server whose metrics address that is."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    seen = Seen(page)
    page.goto(f"http://{address}/")
    try:
        yield page, seen
    finally:
        context.close()


def row(page: Page, name: str) -> Locator:
    return page.locator("tbody tr").filter(has=page.get_by_text(name, exact=True))


# -- the real daemon --------------------------------------------------------------


@contextmanager
def load(daemon: Daemon, *messages: object) -> Iterator[None]:
    """Each message is sent again as soon as it was answered, twice at a time, until this ends."""
    stop = Event()

    async def ask(channel: grpc.aio.Channel, message: object) -> None:
        while not stop.is_set():
            await method(channel, "ModelInfer")(message).code()

    async def run() -> None:
        async with connect(daemon.grpc) as channel:
            await asyncio.gather(*(ask(channel, message) for message in messages for _ in range(2)))

    thread = Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    models.save(models.identity(DType.INT64, [-1]), root, "echo")
    objective = "[objective]\nlatency_slo = 8.0\n"
    models.save(echo_models.steps(), root, "steps", settings=objective + echo_models.serial(16))
    broken = root / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.xml").write_text('<?xml version="1.0"?><net name="broken" version="11"><layers/></net>')
    return root


@pytest.fixture(scope="module")
def daemon(repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    # One that is malformed and one for no model of ours among them.
    asked = (echo([1, 2]), steps(5), request("echo", {}), request("no such model", {}))
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon, load(daemon, *asked):
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def test_figures_appear_and_change(browser: Browser, daemon: Daemon) -> None:
    with looking(browser, daemon.metrics) as (page, seen):
        expect(page.locator("#phase")).to_have_text("ready")
        for name in ("echo", "steps"):
            expect(row(page, name).locator(".pill")).to_have_text("READY")
            expect(row(page, name).locator(".throughput .big")).to_have_text(re.compile(r"^[1-9][0-9,.]* answers/s$"))
            expect(row(page, name).locator(".latency .big")).to_have_text(
                re.compile(r"^p50 [0-9.]+ m?s\s*p99 [0-9.]+ m?s$")
            )
            expect(row(page, name).locator(".place")).to_contain_text("CPU 1 stream" if name == "steps" else "CPU")
        expect(row(page, "echo").locator(".lost")).to_contain_text(re.compile(r"invalid [1-9][0-9,.]*/s"))
        expect(page.locator("#other")).to_have_text(
            re.compile(r"named no model of this server: not_found [1-9][0-9,.]*/s$")
        )
        expect(page.locator("#answered")).to_have_text(re.compile(r"^[1-9][0-9,]*/s$"))
        curve = row(page, "steps").locator(".throughput .curve")
        before = curve.get_attribute("d")
        expect(curve).not_to_have_attribute("d", before or "")
        uptime = page.locator("#uptime").inner_text()
        expect(page.locator("#uptime")).not_to_have_text(uptime)
        expect(page.locator("#banner")).to_be_hidden()
    assert seen.said == []
    assert {url.partition("?")[0] for url in seen.asked} == {
        f"http://{daemon.metrics}/",
        f"http://{daemon.metrics}/status.json",
    }


def test_a_model_is_shown_against_its_objective(browser: Browser, daemon: Daemon) -> None:
    with looking(browser, daemon.metrics) as (page, _):
        expect(row(page, "steps").locator(".latency")).to_contain_text("✓ p99 ≤ 8 s kept, 100 % in time")
        expect(row(page, "steps").locator(".latency .bar")).to_be_visible()
        expect(row(page, "echo").locator(".latency")).to_contain_text("no objective")
        expect(row(page, "echo").locator(".latency .bar")).to_be_hidden()


def test_a_model_that_is_not_served_says_why(browser: Browser, daemon: Daemon) -> None:
    with looking(browser, daemon.metrics) as (page, _):
        expect(row(page, "broken").locator(".pill")).to_have_text("UNAVAILABLE")
        expect(row(page, "broken").locator(".reason")).to_contain_text("failed to load")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 420, 820, 1280, 2560])
def test_it_fits_phone_and_wall(browser: Browser, daemon: Daemon, width: int, scheme: str) -> None:
    with looking(browser, daemon.metrics, width, scheme) as (page, seen):
        expect(row(page, "steps").locator(".latency .curve")).to_have_attribute("d", re.compile("M"))
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 24)"
    assert widths[0] <= widths[1]
    assert dark is (scheme == "dark")
    assert seen.said == []


def test_top_shows_the_same_daemon(daemon: Daemon) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inferd", "top", "--once", "--metrics-address", daemon.metrics],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines["inferd"][1] == "ready"
    heads = lines["model"]
    for name in ("echo", "steps"):
        assert float(lines[name][heads.index("answers/s")].replace(",", "")) > 0
    assert "broken 1: UNAVAILABLE" in done.stdout


def test_a_server_that_stopped_is_shown_as_such_and_found_again(
    browser: Browser, repository: Path, cache_dir: Path
) -> None:
    flags = ("--cache-dir", str(cache_dir))
    with Daemon(repository, *flags) as first:
        address = first.metrics
        with looking(browser, address) as (page, _):
            expect(page.locator("#phase")).to_have_text("ready")
            assert first.stop() == 0, first.log()
            expect(page.locator("#banner")).to_have_text(
                re.compile(r"^The server can't be reached any more\. What is shown is [0-9]+ s old\.$")
            )
            expect(page.locator("#phase")).to_have_text("unreachable")
            expect(page.locator("body")).to_have_class("stale")
            # What was known is still there to be read.
            expect(row(page, "echo")).to_be_visible()
            with Daemon(repository, *flags, "--metrics-bind", address) as second:
                expect(page.locator("#phase")).to_have_text("ready")
                expect(page.locator("#banner")).to_be_hidden()
                expect(page.locator("body")).not_to_have_class("stale")
            assert second.stop() == 0, second.log()


# -- made-up figures --------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


class MadeUp:
    """A server whose readings, a second apart, a test takes one by one."""

    def __init__(self, at: float | None = None) -> None:
        self._at = time.monotonic() if at is None else at
        self._started = self._at - 60
        self._models: tuple[VersionSnapshot, ...] = ()
        self.status = Status(lambda: made_up.server(self._at, self._models, started=self._started))

    def read(self, *now: VersionSnapshot) -> None:
        self._models, self._at = now, self._at + 1
        self.status._sample()


@contextmanager
def serving(made: MadeUp, port: int = 0) -> Iterator[str]:
    exporter = Exporter("127.0.0.1", port, Pages(CollectorRegistry(), lambda: (True, "ready"), made.status))
    exporter.start()
    try:
        yield f"127.0.0.1:{exporter.port}"
    finally:
        exporter.close()


def answered(name: str, requests: int, bucket: int = 0, **known: Any) -> VersionSnapshot:
    counts = [0] * (len(made_up.BOUNDS) + 1)
    counts[bucket] = requests
    return made_up.model(name, outcomes={"ok": requests}, counts=tuple(counts), rows=requests, **known)


def test_what_comes_from_the_server_is_text_and_nothing_else(browser: Browser) -> None:
    made = MadeUp()
    device = made_up.device(HOSTILE, 1, 1, 1, HOSTILE)
    known = {"version": HOSTILE, "state": HOSTILE, "reason": HOSTILE, "devices": (device,)}
    known |= {"tuning": HOSTILE, "tuner": HOSTILE + "!"}
    made.read(made_up.model(HOSTILE, **known))
    made.read(made_up.model(HOSTILE, outcomes={HOSTILE: 5}, **known))
    with serving(made) as address, looking(browser, address) as (page, seen):
        expect(page.locator(".name")).to_have_text(f"{HOSTILE} version {HOSTILE}")
        expect(page.locator(".pill").nth(1)).to_have_text(HOSTILE)
        expect(page.locator("td.lost")).to_contain_text(f"{HOSTILE} 5.0/s")
        expect(page.locator("td.place")).to_have_text(
            f"{HOSTILE} 1 stream, 1 thread, {HOSTILE}tuner: {HOSTILE}!{HOSTILE}"
        )
        assert page.locator("main img, main script").count() == 0
    assert seen.said == []
    assert {url.partition("?")[0] for url in seen.asked} == {f"http://{address}/", f"http://{address}/status.json"}


def test_the_policy_keeps_foreign_scripts_and_addresses_out(browser: Browser) -> None:
    made = MadeUp()
    made.read()
    with serving(made) as address, looking(browser, address) as (page, seen):
        page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.injected = 1';"
            " document.body.append(s); }"
        )
        assert page.evaluate("() => window.injected === undefined")
        assert page.evaluate("() => fetch('http://localhost:9/').then(() => 'sent', () => 'kept in')") == "kept in"
    assert len([line for line in seen.said if "Content Security Policy" in line]) >= 2


def test_models_come_and_go_and_keep_the_servers_order(browser: Browser) -> None:
    made = MadeUp()
    with serving(made) as address:
        made.read()
        with looking(browser, address) as (page, _):
            expect(page.locator("#none")).to_be_visible()
            made.read(made_up.model("b"), made_up.model("d"))
            expect(page.locator(".name")).to_have_text(["b version 1", "d version 1"])
            expect(page.locator("#none")).to_be_hidden()
            made.read(*(made_up.model(name) for name in "abcd"))
            expect(page.locator(".name")).to_have_text([f"{name} version 1" for name in "abcd"])
            made.read(made_up.model("c"))
            expect(page.locator(".name")).to_have_text(["c version 1"])


def points(page: Page, number: int) -> None:
    """Wait until the curve of the throughput has so many points."""
    # The first is drawn as a line to itself.
    expect(page.locator(".throughput .curve")).to_have_attribute("d", re.compile(rf"^M[^L]*(L[^L]+){{{number}}}$"))


def test_a_curve_grows_with_the_readings_and_starts_over_with_the_process(browser: Browser) -> None:
    made = MadeUp()
    for n in range(1, 6):
        made.read(answered("m", n * n))
    with ExitStack() as ends:
        with serving(made) as address:
            page, _ = ends.enter_context(looking(browser, address))
            points(page, 4)
            expect(page.locator(".throughput svg")).to_have_attribute("aria-label", "answers/s: highest 9.0")
            expect(page.locator(".throughput .high")).to_have_text("9.0")
            made.read(answered("m", 50))
            made.read(answered("m", 70))
            points(page, 6)
        another = MadeUp()
        for n in range(8):
            another.read(answered("m", n))
        with serving(another, port=int(address.rpartition(":")[2])):
            points(page, 7)
            expect(page.locator(".throughput svg")).to_have_attribute("aria-label", "answers/s: highest 1.0")
            expect(page.locator(".throughput .high")).to_have_text("1.0")


def test_a_missed_objective_is_told_in_words(browser: Browser) -> None:
    made = MadeUp()
    known = {"objective": 0.01, "percentile": 95.0}
    made.read(made_up.model("m", **known))
    made.read(made_up.model("m", outcomes={"ok": 200}, counts=(0, 99, 101, 0), **known))
    with serving(made) as address, looking(browser, address) as (page, _):
        expect(page.locator("td.latency")).to_contain_text("✗ p95 ≤ 10 ms missed, 49 % in time")
        expect(page.locator(".latency .bar")).to_have_class(re.compile("over"))


def test_the_curves_have_axes(browser: Browser) -> None:
    made = MadeUp()
    known = {"objective": 0.2}
    made.read(made_up.model("m", **known))
    made.read(made_up.model("m", outcomes={"ok": 12}, counts=(0, 12, 0, 0), **known))
    with serving(made) as address, looking(browser, address) as (page, _):
        expect(page.locator(".throughput figure")).to_have_text("1205 min agonowanswers/s, each second")
        # From the only p99 to the objective.
        expect(page.locator(".latency .low")).to_have_text("9.9 ms")
        expect(page.locator(".latency .high")).to_have_text("200 ms")
        expect(page.locator(".latency .to")).to_have_text("now")
        expect(page.locator(".latency figcaption")).to_have_text("p99 of each second; dashed: objective")
        high, low, drawing = (page.locator(f".latency {part}").bounding_box() for part in (".high", ".low", "svg"))
    assert high
    assert low
    assert drawing
    # Its labels are at the ends of the axis, and left of it.
    assert abs(high["y"] - drawing["y"]) <= 2
    assert abs(low["y"] + low["height"] - drawing["y"] - drawing["height"]) <= 2
    assert max(high["x"] + high["width"], low["x"] + low["width"]) <= drawing["x"]


@pytest.mark.parametrize(
    ("late", "shed", "latency", "availability"),
    [
        (5, 0, "latency50 % leftburn 0.5× over 1.0 s", "availability100 % leftburn 0× over 1.0 s"),
        (30, 5, "latencyoverspentburn 3.0× over 1.0 s", "availabilityoverspentburn 5.0× over 1.0 s"),
    ],
)
def test_what_is_left_of_the_error_budgets_is_told(
    browser: Browser, late: int, shed: int, latency: str, availability: str
) -> None:
    made = MadeUp()
    outcomes = {"ok": 1000 - shed, "overloaded": shed, "cancelled": 9}
    made.read(made_up.model("m", objective=0.01))
    made.read(made_up.model("m", objective=0.01, outcomes=outcomes, counts=(0, 1000 - late, late, 0)))
    with serving(made) as address, looking(browser, address) as (page, _):
        for place, text in enumerate((latency, availability)):
            budget = page.locator(".budget").nth(place)
            expect(budget).to_have_text(text)
            expect(budget.locator(".bar")).to_be_visible()
            expect(budget.locator(".bar")).to_have_class(re.compile("over" if "overspent" in text else "^bar *$"))


def test_without_anything_to_judge_there_is_no_budget(browser: Browser) -> None:
    made = MadeUp()
    made.read(made_up.model("m"))
    made.read(made_up.model("m"))
    with serving(made) as address, looking(browser, address) as (page, _):
        expect(page.locator(".budget").nth(0)).to_have_text("latencyno objective")
        expect(page.locator(".budget").nth(1)).to_have_text("availabilityno requests to judge")
        expect(page.locator(".budget .bar").first).to_be_hidden()


def test_the_tuners_phase_and_what_it_does_are_told(browser: Browser) -> None:
    made = MadeUp()
    made.read(
        made_up.model("a", tuner="searching", tuning="searching: 3 of 40 measured"),
        made_up.model("b", tuner="settled"),
        made_up.model("c"),
    )
    with serving(made) as address, looking(browser, address) as (page, _):
        expect(row(page, "a").locator(".tuner")).to_have_text("tuner: searching")
        expect(row(page, "a").locator(".clamp")).to_have_text("3 of 40 measured")
        expect(row(page, "b").locator(".tuner")).to_have_text("tuner: settled")
        expect(row(page, "c").locator(".tuner")).to_be_hidden()


def test_each_column_is_explained(browser: Browser) -> None:
    made = MadeUp()
    made.read(made_up.model("m"))
    with serving(made) as address, looking(browser, address) as (page, seen):
        heads = page.locator("th").all_inner_texts()
        assert page.locator("#legend dt").all_text_contents() == heads
        expect(page.locator("th.spent")).to_have_attribute(
            "title", re.compile("^The part of the requests that the obj")
        )
        assert page.evaluate("[...document.querySelectorAll('th')].every((head) => head.title.length > 30)")
        expect(page.locator("#legend")).to_be_hidden()
        page.get_by_text("What the columns mean").click()
        expect(page.locator("#legend")).to_be_visible()
    assert seen.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_only(browser: Browser, scheme: str) -> None:
    made = MadeUp()
    long = "a-model-with-a-name-that-is-longer-than-a-phone-is-wide-and-has-no-space-in-it"
    devices = (made_up.device("GPU.0", 16, 0, 64, "f16"), made_up.device("CPU", 128, 256, 1024, "bf16"))
    text = "verifying: " + "what the tuner says of it " * 8
    known = {"objective": 0.01, "devices": devices, "tuner": "verifying", "tuning": text, "limit": 100_000}
    for n in range(2):
        outcomes = {"ok": 10**6 * n, "overloaded": 10**6 * n, "internal": 10**5 * n, "deadline": 10**5 * n}
        made.read(
            made_up.model(long, outcomes=outcomes, counts=(0, 0, 0, 10**6 * n), waiting=99_999, oldest=9.0, **known),
            made_up.model("broken", state="UNAVAILABLE", reason=long * 2, devices=()),
        )
    with serving(made) as address, looking(browser, address, 360, scheme) as (page, seen):
        expect(row(page, long).locator(".latency .curve")).to_have_attribute("d", re.compile("M"))
        page.get_by_text("What the columns mean").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        # Neither is anything cut off: each part lies inside of the window.
        outside = page.evaluate(
            "[...document.querySelectorAll('body *')].filter((one) => one.getClientRects().length"
            " && (one.getBoundingClientRect().right > 360.5 || one.getBoundingClientRect().left < 0))"
            ".map((one) => one.className)"
        )
        for name in (".throughput", ".latency", ".spent", ".work", ".lost", ".place"):
            expect(row(page, long).locator(f"td{name}")).to_be_visible()
    assert outside == []
    assert seen.said == []


def test_a_percentile_beyond_the_last_bucket_is_told_as_such(browser: Browser) -> None:
    made = MadeUp()
    made.read(answered("m", 0))
    made.read(answered("m", 10, bucket=3))
    with serving(made) as address, looking(browser, address) as (page, _):
        expect(page.locator("td.latency .big")).to_have_text(re.compile(r"p50 ≥ 100 ms\s*p99 ≥ 100 ms"))


def test_figures_that_are_old_are_told_to_be(browser: Browser) -> None:
    made = MadeUp(time.monotonic() - 3700)
    made.read(made_up.model("m"))
    with serving(made) as address, looking(browser, address) as (page, _):
        expect(page.locator("#banner")).to_have_text("The server answers, but its figures are 1 h 1 min old.")
        expect(page.locator("body")).to_have_class("stale")


def test_a_server_without_figures_is_told(browser: Browser) -> None:
    with serving(MadeUp()) as address, looking(browser, address) as (page, _):
        expect(page.locator("#banner")).to_have_text("The server can't be reached: it answers 503.")
