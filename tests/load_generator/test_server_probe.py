"""The sources of a server's own figures."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from inferd.bench.server_side import Resources
from inferd.load_generator.server_probe import MetricsPage, NoResourceUsage, ProcessTree
from inferd.security.client_credentials import NO_CREDENTIALS, ClientCredentials

PAGE = """# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 12.5
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 3.0e+08
process_resident_memory_bytes_of_another 7
"""


@contextmanager
def page(body: str, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A page with ``body``; its address, and the credentials presented to it."""
    shown: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics", shown
        finally:
            server.shutdown()
            serving.join()


def test_a_prometheus_page_has_cpu_time_and_memory() -> None:
    with page(PAGE) as (url, shown):
        assert MetricsPage(url, NO_CREDENTIALS).read() == Resources(12.5, 300_000_000)
        assert MetricsPage(url, ClientCredentials(token="secret")).read().cpu_seconds == 12.5
    assert shown == ["", "Bearer secret"]


def test_a_page_of_several_processes_is_their_sum() -> None:
    body = "".join(
        f'process_cpu_seconds_total{{worker="{w}",name="a }} b"}} {w}.5 1700000000000\n'
        f'process_resident_memory_bytes{{worker="{w}"}} 10{w}\n'
        for w in range(3)
    )
    with page(body) as (url, _):
        assert MetricsPage(url, NO_CREDENTIALS).read() == Resources(4.5, 303)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("process_cpu_seconds_total 1\n", 200, "has no process_resident_memory_bytes"),
        ("<html></html>", 200, "has no process_cpu_seconds_total"),
        ("", 404, "Not Found"),
    ],
)
def test_a_page_without_figures_is_one_sentence(body: str, status: int, says: str) -> None:
    with page(body, status) as (url, _), pytest.raises(NoResourceUsage, match=says):
        MetricsPage(url, NO_CREDENTIALS).read()


def test_a_missing_page_is_one_sentence() -> None:
    with pytest.raises(NoResourceUsage, match=r"http://127\.0\.0\.1:1/metrics: .*refused"):
        MetricsPage("http://127.0.0.1:1/metrics", NO_CREDENTIALS).read()


def test_a_process_is_known_by_the_kernel() -> None:
    before = ProcessTree(os.getpid()).read()
    used = os.times()
    assert before.cpu_seconds == pytest.approx(used.user + used.system, abs=5.0)
    assert before.rss_bytes > 10_000_000


def write(proc: Path, pid: int, cpu: tuple[int, int], pages: int, children: str) -> None:
    thread = proc / str(pid) / "task" / str(pid)
    thread.mkdir(parents=True)
    (thread / "children").write_text(children)
    fields = ["S", *"0" * 10, str(cpu[0]), str(cpu[1]), *"0" * 8, str(pages), *"0" * 5]
    # A process may have any name.
    (proc / str(pid) / "stat").write_text(f"{pid} (a) b 1 2) {' '.join(fields)}\n")


def test_a_process_counts_with_its_own_children_only(tmp_path: Path) -> None:
    write(tmp_path, 10, (100, 50), 7, "11 12 ")
    write(tmp_path, 11, (10, 5), 70, "13 ")
    write(tmp_path, 13, (1, 0), 700, "")
    write(tmp_path, 20, (9999, 9999), 9999, "")
    # 12 has ended since.
    ticks, page_size = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert ProcessTree(10, tmp_path).read() == Resources(166 / ticks, 777 * page_size)


def test_a_missing_process_is_one_sentence() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(NoResourceUsage, match=f"process {ended.pid}: No such file"):
        ProcessTree(ended.pid).read()
