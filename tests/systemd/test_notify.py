"""The messages at the supervisor's socket."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from inferd.systemd.notify import NotifySender, runs_as_service, watchdog_seconds


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    """A bound datagram socket; receiving from it fails at once where nothing was sent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def notifier(supervisor: socket.socket) -> NotifySender:
    return NotifySender({"NOTIFY_SOCKET": supervisor.getsockname()})


def lines(supervisor: socket.socket) -> list[str]:
    return supervisor.recv(4096).decode().split("\n")


def test_ready_comes_with_a_status(supervisor: socket.socket) -> None:
    notifier(supervisor).ready("serving 2 of 2 models")
    assert lines(supervisor) == ["READY=1", "STATUS=serving 2 of 2 models"]


def test_stopping_says_how_long_it_may_take(supervisor: socket.socket) -> None:
    notifier(supervisor).stopping("draining", 90.5)
    assert lines(supervisor) == ["STOPPING=1", "STATUS=draining", "EXTEND_TIMEOUT_USEC=90500000"]


def test_loading_extends_the_time_for_starting(supervisor: socket.socket) -> None:
    notifier(supervisor).extend("loading", 60)
    assert lines(supervisor) == ["STATUS=loading", "EXTEND_TIMEOUT_USEC=60000000"]


def test_a_reload_is_stamped_with_the_monotonic_clock(supervisor: socket.socket) -> None:
    notifier(supervisor).reloading()
    said, stamp = lines(supervisor)
    assert said == "RELOADING=1"
    assert stamp.removeprefix("MONOTONIC_USEC=").isdigit()


def test_the_watchdog_is_fed_with_one_line(supervisor: socket.socket) -> None:
    notifier(supervisor).alive()
    assert lines(supervisor) == ["WATCHDOG=1"]


def test_a_status_stays_one_line(supervisor: socket.socket) -> None:
    notifier(supervisor).status("no answer\nREADY=1")
    assert lines(supervisor) == ["STATUS=no answer READY=1"]


def test_an_abstract_socket_is_named_with_an_at_sign() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")  # the kernel picks an abstract name
        listener.setblocking(False)
        NotifySender({"NOTIFY_SOCKET": "@" + listener.getsockname()[1:].decode()}).alive()
        assert lines(listener) == ["WATCHDOG=1"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_nothing_is_sent_without_a_listener(environment: dict[str, str]) -> None:
    with capture_logs() as logs:
        quiet = NotifySender(environment)
        assert not quiet.enabled
        told = len(logs)
        quiet.ready("")
        quiet.alive()
    assert len(logs) == told


def test_a_supervisor_that_is_gone_is_complained_of_once(tmp_path: Path) -> None:
    lost = NotifySender({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with capture_logs() as logs:
        lost.alive()
        lost.alive()
    assert [entry["event"] for entry in logs] == ["supervisor not notified"]


def test_the_watchdog_is_ours_when_it_names_us_or_no_process() -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": "1500000"}) == 1.5
    assert watchdog_seconds({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, pid=7) == 1.5
    assert watchdog_seconds({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, pid=7) is None
    assert watchdog_seconds({}) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "0"}) is None


@given(st.text(), st.text())
def test_any_value_of_the_variables_is_taken_without_a_fault(usec: str, pid: str) -> None:
    seconds = watchdog_seconds({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}, pid=7)
    assert seconds is None or seconds > 0


@pytest.mark.parametrize(
    ("environment", "service"),
    [
        ({}, False),
        ({"NOTIFY_SOCKET": "/run/systemd/notify"}, True),
        ({"NOTIFY_SOCKET": ""}, False),
        ({"INVOCATION_ID": "1", "SYSTEMD_EXEC_PID": "42"}, True),
        # Of a terminal, which is a service: it starts no other daemon.
        ({"INVOCATION_ID": "1", "SYSTEMD_EXEC_PID": "41"}, False),
        ({"INVOCATION_ID": "1"}, False),
        ({"SYSTEMD_EXEC_PID": "42"}, False),
    ],
)
def test_only_a_service_is_restarted(environment: dict[str, str], service: bool) -> None:
    assert runs_as_service(environment, 42) is service
