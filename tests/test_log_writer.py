"""The log's lines on their way to a pipe that is read, read late, or never read."""

import os
from collections.abc import Iterator

import pytest

from inferd.log_writer import LogWriter

Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def read_all(pipe: Pipe) -> list[str]:
    """What is in the pipe once its writing end is closed."""
    reader, writer = pipe
    os.close(writer)
    data = b""
    while got := os.read(reader, 1 << 16):
        data += got
    return data.decode().splitlines()


def test_lines_are_written_in_their_order(pipe: Pipe) -> None:
    log = LogWriter(pipe[1])
    for number in range(1000):
        assert log.write(f"line {number}\n") == len(f"line {number}\n")
    assert log.drain(10)
    assert log.lost == 0
    assert read_all(pipe) == [f"line {number}" for number in range(1000)]


def test_what_nobody_reads_is_lost_without_waiting_and_counted(pipe: Pipe) -> None:
    log = LogWriter(pipe[1], most_waiting=100_000)
    line = "x" * 99
    for _ in range(5000):
        log.write(f"{line}\n")
    assert not log.drain(0.05)
    assert 0 < log.lost < 5000
    kept, read = 5000 - log.lost, 0
    while read < kept * 100:
        read += len(os.read(pipe[0], 1 << 16))
    assert log.drain(10)
    # Read again, it is written again.
    log.write("more\n")
    assert log.drain(10)
    assert read_all(pipe) == ["more"]
    assert read == kept * 100


def test_lines_for_a_reader_that_is_gone_are_counted(pipe: Pipe) -> None:
    log = LogWriter(pipe[1])
    os.close(pipe[0])
    for _ in range(3):
        log.write("lost\n")
        assert log.drain(10)
    assert log.lost == 3


def test_a_descriptor_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe[1], False)
    log = LogWriter(pipe[1])
    for number in range(2000):
        log.write(f"{number:099}\n")
    got = b""
    while len(got) < 200_000:
        got += os.read(pipe[0], 1 << 16)
    assert log.drain(10)
    assert log.lost == 0
    assert got.decode().splitlines() == [f"{number:099}" for number in range(2000)]


def test_it_is_a_terminal_if_its_descriptor_is(pipe: Pipe) -> None:
    controller, terminal = os.openpty()
    try:
        assert LogWriter(terminal).isatty()
    finally:
        os.close(controller)
        os.close(terminal)
    assert not LogWriter(pipe[1]).isatty()
