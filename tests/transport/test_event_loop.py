"""The loop on gRPC's queue does what asyncio's own does: timers, threads, signals, descriptors, errors."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inferd.transport import core
from inferd.transport.event_loop import QueueEventLoop
from tests.event_loop import on_loop, run, until


def test_the_queue_is_the_one_that_is_known() -> None:
    # Without these, grpcio is outside of the range in pyproject.toml that inferd's transport was written for.
    missing = [name for name in core.__all__ if not hasattr(core, name)]
    assert not missing, f"this grpcio's completion queue lacks {missing}: see daemon/inferd/transport/core.py"
    assert {"poll", "shutdown"} <= set(dir(core.CompletionQueue))
    assert {"add_http2_port", "cancel_all_calls", "register_completion_queue", "request_call", "shutdown"} <= set(
        dir(core.Server)
    )


SIGNALS = """
import asyncio, os, signal
from inferd.transport.event_loop import QueueEventLoop

async def main():
    loop, came, count = asyncio.get_running_loop(), asyncio.Event(), 0
    loop.add_signal_handler(signal.SIGUSR1, came.set)
    for _ in range(20):
        os.kill(os.getpid(), signal.SIGUSR1)
        await came.wait()
        came.clear()
        count += 1
    return count

with asyncio.Runner(loop_factory=QueueEventLoop) as runner:
    print(runner.run(main()))
"""


@on_loop
async def test_timers_run_in_the_order_of_their_times_and_not_before() -> None:
    loop, begun, ran = asyncio.get_running_loop(), time.monotonic(), []
    for delay in (0.03, 0.01, 0.02, 0.0):
        loop.call_later(delay, lambda delay=delay: ran.append((delay, time.monotonic() - begun)))
    await until(lambda: len(ran) == 4)
    assert [delay for delay, _ in ran] == [0.0, 0.01, 0.02, 0.03]
    assert all(took >= delay for delay, took in ran)


@on_loop
async def test_a_timer_set_by_an_event_is_not_slept_past() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, QueueEventLoop)
    far, near = loop.call_later(3600, lambda: None), loop.create_future()
    # While the loop waits for the far timer, an event sets a near one.
    threading.Timer(0.01, lambda: loop.post(lambda _: loop.call_later(0.01, near.set_result, None))).start()
    await near
    far.cancel()


@on_loop
async def test_callbacks_from_many_threads_all_run_and_in_each_threads_order() -> None:
    loop, ran = asyncio.get_running_loop(), []
    threads = [
        threading.Thread(target=lambda n=n: [loop.call_soon_threadsafe(ran.append, (n, i)) for i in range(500)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    await until(lambda: len(ran) == 2000)
    assert all([i for n, i in ran if n == of] == list(range(500)) for of in range(4))


@on_loop
async def test_a_cancelled_callback_from_a_thread_does_not_run() -> None:
    loop, ran = asyncio.get_running_loop(), []
    loop.call_soon_threadsafe(ran.append, "cancelled").cancel()
    loop.call_soon_threadsafe(ran.append, "kept")
    await until(lambda: bool(ran))
    assert ran == ["kept"]


@on_loop
async def test_what_fails_in_an_event_is_reported_and_the_loop_continues() -> None:
    loop, reported = asyncio.get_running_loop(), []
    assert isinstance(loop, QueueEventLoop)
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    loop.post(lambda _: 1 // 0)
    loop.call_soon_threadsafe(lambda: {}["x"])
    await until(lambda: len(reported) == 2)
    assert [type(error) for error in reported] == [ZeroDivisionError, KeyError]
    await asyncio.sleep(0.001)


def test_signals_reach_their_handlers() -> None:
    # In a process of its own: OpenVINO may have left the threads of this one without a usable stack for signals
    # (fact 51).
    done = subprocess.run([sys.executable, "-c", SIGNALS], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "20\n", "")


@on_loop
async def test_sockets_files_and_processes_work_as_on_any_loop() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for number in range(200):
            writer.write(b"%d\n" % number)
            assert await reader.readline() == b"%d\n" % number
        writer.close()
    child = await asyncio.create_subprocess_exec("echo", "said", stdout=asyncio.subprocess.PIPE)
    assert (await child.communicate())[0] == b"said\n"
    assert await asyncio.to_thread(lambda: 5) == 5


@on_loop
async def test_a_time_out_ends_a_wait() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()


def test_stopping_from_another_thread_ends_the_loop() -> None:
    with loops() as loop:
        threading.Timer(0.01, lambda: loop.call_soon_threadsafe(loop.stop)).start()
        loop.run_forever()


def test_what_comes_after_the_end_is_refused_or_does_nothing() -> None:
    with loops() as loop:
        loop.run_until_complete(asyncio.sleep(0))
    loop.post(lambda _: pytest.fail("the loop polls no more"))
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(lambda: None)
    loop.close()


def test_nothing_is_left_of_a_loop() -> None:
    run(asyncio.sleep(0))
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(10):
        run(asyncio.sleep(0))
    after = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    assert after[1] == before[1]
    assert after[0] <= before[0] + 10


@contextmanager
def loops() -> Iterator[QueueEventLoop]:
    loop = QueueEventLoop()
    try:
        yield loop
    finally:
        loop.close()
