"""``inferd top``: the table, in a pipe and in a terminal, of a server with made-up figures."""

import argparse
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count, pairwise
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from rich.cells import cell_len
from rich.console import Console

from inferd.cli import top
from inferd.cli.main import main
from inferd.cli.top_display import render, render_explanation
from inferd.exposition.exporter import Exporter, Pages
from inferd.exposition.status import Status
from inferd.metrics.rolling import History, ServerView
from inferd.metrics.snapshot import ServerSnapshot, VersionSnapshot
from tests.metrics.made_up import device, model, server

HOSTILE = "[red]x\n\x1b[2J\u202ey"
PATIENCE = 60.0


def busy(name: str, answered: int, seconds: float, **known: Any) -> list[VersionSnapshot]:
    """Two readings of a model that answered so many requests between them, in so much time altogether."""
    after = {"outcomes": {"ok": answered}, "counts": (0, answered, 0, 0), "seconds": seconds, "rows": 2 * answered}
    return [model(name, **known), model(name, **(known | after))]


def live_of(*models: Sequence[VersionSnapshot], **known: Any) -> ServerView:
    history = History()
    for place, at in enumerate((100.0, 101.0)):
        history.add(server(at, [readings[place] for readings in models], **known))
    view = history.view()
    assert view is not None
    return view


def shown(view: ServerView, width: int = 300, height: int | None = None, warning: str = "") -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(render(view, width, height, warning))
    return out.getvalue().splitlines()


def row(lines: list[str], name: str) -> str:
    (found,) = [line for line in lines if line.startswith(name)]
    return found


TWO = live_of(
    busy("small", 900, 0.9, waiting=0, in_flight=1, running=1),
    busy(
        "large-model",
        20,
        3.2,
        objective=0.01,
        bounds=(0.001, 0.01, 0.1),
        waiting=7,
        oldest=0.0421,
        in_flight=9,
        running=2,
        devices=(device("GPU.0", 2, 0, 4, "f16"), device("CPU", 1, 2, 1, "f32")),
        tuning="settled: promoted 2 streams",
        tuner="settled",
    ),
)


# -- the table --------------------------------------------------------------------


def test_the_model_with_the_most_to_do_comes_first() -> None:
    lines = shown(TWO)
    names = [line.split()[0] for line in lines if line.startswith(("small", "large-model"))]
    # Twenty requests that take long are more than hundreds that don't.
    assert names == ["large-model", "small"]


def test_a_row_says_what_the_page_says() -> None:
    words = row(shown(TWO), "large-model").split("  ")
    cells = [word.strip() for word in words if word.strip()]
    assert cells[:4] == ["large-model", "1", "READY", "20"]
    assert "p99 ≤ 10 ms ✓ 100 %" in cells
    assert {"3.2", "5.5 ms", "9.9 ms", "40", "7", "42.1 ms", "9/40", "2/5"} <= set(cells)
    assert cells[-3:] == ["settled", "GPU.0 2 streams, f16; CPU 1 stream, 2 threads, f32", "promoted 2 streams"]


def test_the_curve_says_its_time_and_its_axis() -> None:
    lines = shown(TWO)
    assert "last 20 s" in lines[2]
    # One reading, which is the highest.
    assert "█ 0..20  " in row(lines, "large-model")
    assert "█ 0..900  " in row(lines, "small")


def burning(within: int, late: int, **outcomes: int) -> str:
    counted = {"ok": within + late} | outcomes
    readings = [model(objective=0.01), model(objective=0.01, counts=(0, within, late, 0), outcomes=counted)]
    return row(shown(live_of(readings)), "m ")


def test_the_budget_that_burns_faster_is_told() -> None:
    assert "  0.5× latency  " in burning(995, 5)
    assert "  3.0× latency  " in burning(970, 30)
    assert "  10× availability  " in burning(990, 0, overloaded=10)
    assert "×" not in row(shown(live_of([model(), model()])), "m ")


def test_a_tuner_with_nothing_more_to_say_says_it_once() -> None:
    known = {"tuning": "searching", "tuner": "searching"}
    assert row(shown(live_of([model(**known), model(**known)])), "m ").count("searching") == 1


@pytest.mark.parametrize("size", [(20, 3), (80, 24), (200, 60)])
def test_the_explanation_has_each_column_and_fits(size: tuple[int, int]) -> None:
    out = io.StringIO()
    Console(file=out, width=size[0], height=size[1]).print(render_explanation(*size))
    lines = out.getvalue().splitlines()
    assert len(lines) <= size[1]
    assert all(cell_len(line) <= size[0] for line in lines)
    if size[1] > 24:
        heads = re.split(r"  +", shown(TWO)[2].strip())
        assert [re.split(r"  +", line)[0] for line in lines[2:-1]] == heads


def test_the_help_explains_the_columns_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["top", "--help"])
    out = capsys.readouterr().out
    assert max(map(cell_len, out.splitlines())) <= 80
    for head in re.split(r"  +", shown(TWO)[2].strip()):
        assert f"\n  {head}  " in out


def test_the_servers_own_line_comes_first() -> None:
    (line, *_) = shown(TWO)
    assert line.split("  ") == [
        "inferd ready",
        "920 answers/s",
        "0 shed/s",
        "0 errors/s",
        "0.00 CPUs",
        "512 MB",
        "up 1 min 1 s",
        "1.2.3, OpenVINO 2026.4.1",
    ]


def test_an_objective_that_is_missed_says_so_without_colour() -> None:
    readings = [
        model(objective=0.01),
        model(objective=0.01, counts=(0, 999, 1001, 0), outcomes={"ok": 2000}),
    ]
    # 49.95 % are never shown as 50 %.
    assert "p99 ≤ 10 ms ✗ 49.9 %" in row(shown(live_of(readings)), "m ")


def test_what_took_longer_than_can_be_told_is_shown_as_at_least_that() -> None:
    readings = [model(), model(counts=(0, 0, 0, 5), outcomes={"ok": 5})]
    assert row(shown(live_of(readings)), "m ").count("≥ 100 ms") == 2


def test_a_model_that_is_not_served_says_why() -> None:
    broken = model("broken", state="UNAVAILABLE", reason="no such file", devices=(), limit=0)
    lines = shown(live_of([broken, broken]))
    assert "broken 1: UNAVAILABLE no such file" in lines


def test_requests_for_no_model_of_ours_are_told() -> None:
    history = History()
    history.add(server(100))
    history.add(server(102, other={"not_found": 5, "internal": 2}))
    view = history.view()
    assert view is not None
    lines = shown(view)
    assert "requests that named no model of this server: internal 1.0/s, not_found 2.5/s" in lines
    assert "1.0 errors/s" in lines[0]


def test_without_models_it_says_so() -> None:
    assert "no models" in shown(live_of())


@pytest.mark.parametrize("width", range(20, 260))
def test_it_fits_and_never_wraps(width: int) -> None:
    lines = shown(TWO, width)
    assert all(cell_len(line.rstrip()) <= width for line in lines)
    # The server's line, a gap, the head, a row each, and what the figures are of.
    assert len(lines) == 6


def test_the_least_important_columns_are_dropped_first() -> None:
    heads = [set(shown(TWO, width)[2].split()) for width in (200, 120, 80, 50)]
    assert all(wide >= narrow for wide, narrow in pairwise(heads))
    assert {"tuning", "refused/s"} & heads[1] == set()
    assert {"model", "answers/s", "p99"} <= heads[3]
    assert {"objective", "shed/s", "errors/s", "p99"} <= heads[2]


@given(st.text(max_size=100), st.text(max_size=100), st.integers(20, 200))
def test_a_name_is_shown_as_it_is_and_does_nothing_to_the_terminal(name: str, reason: str, width: int) -> None:
    broken = model(name, reason=reason, tuning=reason, state="UNAVAILABLE")
    lines = shown(live_of([broken, broken]), width)
    assert all(line.isprintable() for line in lines)
    assert len(lines) == (6 if reason else 5)


def test_markup_in_a_name_is_no_markup() -> None:
    assert shown(live_of([model(HOSTILE), model(HOSTILE)]))[3].startswith("[red]x  [2J y")


@pytest.mark.parametrize("height", range(7, 40))
def test_it_is_no_higher_than_the_terminal_and_says_what_is_left_out(height: int) -> None:
    many = live_of(*(busy(f"model-{n:02}", 30 - n, 3.0 - n / 10) for n in range(30)))
    lines = shown(many, 100, height, "doubt")
    assert len(lines) <= height
    rows = [line for line in lines if line.startswith("model-")]
    assert rows[0].startswith("model-00")
    assert len(rows) == 30 or f"and {30 - len(rows)} more" in lines


# -- asking -----------------------------------------------------------------------


@contextmanager
def serving(names: Sequence[str] = ("small",), port: int = 0) -> Iterator[str]:
    """The metrics address of a server whose models answer ten requests a reading each."""
    readings = count(1)

    def read() -> ServerSnapshot:
        n = next(readings)
        return server(n, [model(name, outcomes={"ok": 10 * n}, counts=(10 * n, 0, 0, 0)) for name in names])

    status = Status(read, interval=0.05)
    exporter = Exporter("127.0.0.1", port, Pages(CollectorRegistry(), lambda: (True, "ready"), status))
    status.start()
    exporter.start()
    try:
        yield f"127.0.0.1:{exporter.port}"
    finally:
        exporter.close()
        status.stop()


@contextmanager
def answering(sent: bytes) -> Iterator[str]:
    """The address of something that answers each connection with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(sent)

        thread = Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def http_answer(status: str, body: str) -> bytes:
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_once_in_a_pipe_is_one_plain_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the tests run may say how wide a terminal is; this is about a pipe that nothing limits.
    monkeypatch.delenv("COLUMNS", raising=False)
    with serving(("small", HOSTILE)) as address:
        assert main(["top", "--once", "--metrics-address", address]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    lines = out.splitlines()
    # Nothing limits the width of a pipe, so nothing is dropped.
    assert lines[2].split()[0] == "model"
    assert lines[2].rstrip().endswith("tuning")
    assert {line.split()[0] for line in lines[3:5]} == {"small", "[red]x"}


def test_a_pipe_gets_one_table_also_where_none_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as address:
        assert main(["top", "--metrics-address", address]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("Rates and percentiles") == 1


def test_columns_limits_a_pipe_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with serving() as address:
        assert main(["top", "--once", "--metrics-address", address]) == 0
    assert max(len(line.rstrip()) for line in capsys.readouterr().out.splitlines()) <= 60


def test_json_is_the_figures_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as address:
        assert main(["top", "--json", "--metrics-address", address]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    view = json.loads(line)
    assert (view["service"], [m["model"] for m in view["models"]]) == ("inferd", ["small"])


def test_when_nothing_listens_it_is_one_line_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    assert main(["top", "--metrics-address", address]) == 1
    assert capsys.readouterr() == ("", f"inferd: {address}: no daemon answers: Connection refused\n")


def test_figures_of_another_release_are_one_line_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(http_answer("200 OK", '{"service":"inferd","sequence":1}')) as address:
        assert main(["top", "--metrics-address", address]) == 1
    assert capsys.readouterr() == (
        "",
        f"inferd: {address}: the daemon's status data has another format; use the same release\n",
    )


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00\x00\x18\x04\x00\x00\x00\x00\x00",  # as a gRPC port does
        http_answer("404 Not Found", "paths: /metrics, /healthz, /readyz\n"),
        http_answer("200 OK", "[]"),
        http_answer("200 OK", '{"service":"another"}'),
        http_answer("200 OK", "<html>"),
        http_answer("200 OK", "\x00\xff"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    ],
)
def test_when_what_answers_is_not_inferd_it_is_one_line_and_1(sent: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(sent) as address:
        assert main(["top", "--metrics-address", address]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"inferd: {address}: ")
    assert err.count("\n") == 1


def test_a_server_without_figures_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(http_answer("503 Service Unavailable", "no figures yet\n")) as address:
        assert main(["top", "--once", "--metrics-address", address]) == 1
    assert capsys.readouterr().err == f"inferd: {address}: no status data yet\n"


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_a_server_that_refuses_says_why(status: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(http_answer(status, "not\x1b for\nyou\n")) as address:
        assert main(["top", "--once", "--metrics-address", address]) == 1
    assert capsys.readouterr().err == f"inferd: {address}: not  for you\n"


@pytest.mark.parametrize(
    "flags",
    [
        ("--metrics-address", "nonsense"),
        ("--metrics-address", "host:0"),
        ("--metrics-address", "host:65536"),
        ("--metrics-address", ":8002"),
        ("--interval", "0"),
        ("--interval", "nan"),
        ("--interval", "often"),
    ],
)
def test_a_flag_that_makes_no_sense_is_a_usage_error(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["top", *flags])
    assert refused.value.code == 2
    assert f"got {flags[1]!r}; allowed: " in capsys.readouterr().err


def test_an_address_may_be_of_ipv6() -> None:
    parser = argparse.ArgumentParser()
    top.add_arguments(parser)
    assert parser.parse_args(["--metrics-address", "[::1]:8002"]).metrics_address == "[::1]:8002"


# -- in a terminal ----------------------------------------------------------------

ENTER, LEAVE, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


class Terminal:
    """``inferd top`` in a terminal of that size, and all that it has written there."""

    def __init__(self, address: str, columns: int = 120, lines: int = 20) -> None:
        try:
            self._ours, self._theirs = pty.openpty()
        except OSError as error:
            pytest.skip(f"no terminal can be made here: {error}")
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(self._theirs)
        self.written = b""
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inferd", "top", "--metrics-address", address, "--interval", "0.1"],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=environment | {"TERM": "xterm-256color"},
            # Ctrl-C reaches only those whose controlling terminal it is.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - the child only runs this
        )

    def until(self, text: bytes) -> bytes:
        """Read on until ``text`` was written, and give what came before it since the last time."""
        given_up = time.monotonic() + PATIENCE
        while text not in self.written:
            assert select.select([self._ours], [], [], max(0.0, given_up - time.monotonic()))[0], self.written[-2000:]
            self.written += os.read(self._ours, 65536)
        before, _, self.written = self.written.partition(text)
        return before

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> int:
        """The exit status; the terminal is as it was."""
        assert SHOW_CURSOR in self.until(LEAVE)
        status = self.process.wait(PATIENCE)
        assert termios.tcgetattr(self._theirs) == self.before
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def terminal(address: str, columns: int = 120, lines: int = 20) -> Iterator[Terminal]:
    made = Terminal(address, columns, lines)
    try:
        yield made
    finally:
        made.close()


def test_it_takes_the_whole_screen_and_q_gives_it_back() -> None:
    with serving() as address, terminal(address) as seen:
        seen.until(ENTER)
        seen.until(b"small")
        # It is drawn again and again.
        seen.until(b"small")
        seen.press(b"q")
        assert seen.end() == 0


def test_control_c_leaves_as_cleanly() -> None:
    with serving() as address, terminal(address) as seen:
        seen.until(b"small")
        seen.press(b"\x03")
        assert seen.end() == 0


def test_a_signal_to_end_leaves_the_terminal_as_it_was() -> None:
    with serving() as address, terminal(address) as seen:
        seen.until(b"small")
        seen.process.send_signal(signal.SIGTERM)
        assert seen.end() == 128 + signal.SIGTERM


def test_a_question_mark_explains_the_columns_until_the_next() -> None:
    with serving() as address, terminal(address, lines=30) as seen:
        seen.until(b"? explains the columns.")
        seen.press(b"?")
        seen.until(b"What the columns mean")
        seen.until(b"busy infer requests, of all")
        seen.press(b"?")
        seen.until(b"small")
        seen.press(b"q")
        assert seen.end() == 0


def test_a_key_that_means_nothing_does_nothing() -> None:
    with serving() as address, terminal(address) as seen:
        seen.until(b"small")
        seen.press(b"x\x1b[A")
        seen.until(b"small")
        seen.until(b"small")
        seen.press(b"q")
        assert seen.end() == 0


def test_a_server_that_went_away_is_told_and_found_again() -> None:
    with ExitStack() as ends:
        with serving(("first",)) as address:
            seen = ends.enter_context(terminal(address))
            seen.until(b"first")
        seen.until(b"no daemon answers: Connection refused; values are ")
        # What was known is shown on.
        seen.until(b"first")
        with serving(("second",), port=int(address.rpartition(":")[2])):
            seen.until(b"second")
            seen.press(b"q")
            assert seen.end() == 0


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    with serving() as address, terminal(address, columns=50) as seen:
        seen.until(b"model")
        head = seen.until(b"small")
        seen.press(b"q")
        assert seen.end() == 0
    assert b"answers/s" in head
    assert b"tuning" not in head
