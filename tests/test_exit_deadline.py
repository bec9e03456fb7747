"""A process ends in time and at once when asked again, whatever its event loop and its threads do."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from inferd.exit_deadline import LAST_SECONDS

# A process with a deadline of {seconds}; it writes "up", then runs {then} on its main thread.
PROGRAM = """
import ctypes, sys, threading, time
from inferd import logs
from inferd.exit_deadline import ExitDeadline
from inferd.log_writer import LogWriter

log = LogWriter(sys.stderr.fileno())
logs.configure("info", "json", log)
deadline = ExitDeadline({seconds}, 70, log)
deadline.take_signals(lambda: print("stop", flush=True), lambda: print("reload", flush=True), second={second})
print("up", flush=True)
{then}
"""
WAITING = "threading.Event().wait()"
# A call into C that does not let go of the interpreter's lock.
LOCKED = "deadline.arm(); ctypes.PyDLL(None).pause()"
# A thread that the interpreter waits for before it ends.
JOINED = "deadline.arm(); threading.Thread(target=threading.Event().wait, name='stuck').start()"


def started(then: str, seconds: float, second: str = "lambda: print('second', flush=True)") -> "subprocess.Popen[str]":
    code = PROGRAM.format(then=then, seconds=seconds, second=second)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_main_thread_that_hangs_does_not_keep_it_from_ending() -> None:
    with started(WAITING, 0.2) as process:
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (70, "stop\n")
    events = [json.loads(line) for line in log.splitlines()]
    assert [event["event"] for event in events] == ["signal received", "not ended in time; exiting"]
    assert any(re.fullmatch(r"MainThread: wait \(threading.py:\d+\)", thread) for thread in events[1]["threads"])


def test_a_thread_that_the_interpreter_waits_for_does_not_keep_it_from_ending() -> None:
    with started(JOINED, 0.2) as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "stuck: wait" in log


def test_a_thread_that_never_lets_go_of_the_interpreter_does_not_keep_it_from_ending() -> None:
    with started(LOCKED, 0.2) as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Timeout" in log
    assert "most recent call first" in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    with started(WAITING, 1000) as process:
        process.send_signal(signal.SIGTERM)
        assert said(process) == "stop\n"
        end = time.monotonic() + 60
        # Signals close together count as one.
        while process.poll() is None and time.monotonic() < end:
            process.send_signal(number)
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "second\n")
    assert "second signal received; exiting at once" in log


def test_where_a_second_signal_means_nothing_the_deadline_holds() -> None:
    with started(WAITING, 1.0, second="None") as process:
        for _ in range(5):
            process.send_signal(signal.SIGTERM)
        assert said(process) == "stop\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (70, "")


def test_sighup_reloads_and_ends_nothing() -> None:
    with started(WAITING, 0.0) as process:
        process.send_signal(signal.SIGHUP)
        assert said(process) == "reload\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 70


def test_a_process_that_ends_by_itself_is_left_alone() -> None:
    with started("deadline.arm(); deadline.arm()", 30) as process:
        assert process.wait(60) == 0
    assert LAST_SECONDS > 0
