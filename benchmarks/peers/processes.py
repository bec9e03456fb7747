"""A server as the kernel sees it: all its processes, their CPU time and memory, paused and resumed."""

import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "BENCH_SERVER"
"""The environment variable that marks a server's processes, whichever process became their parent."""

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Family:
    """The processes whose variable :data:`MARK` is ``mark``."""

    mark: str

    def members(self) -> list[int]:
        """Their current ids."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    variables = (folder / "environ").read_bytes()
                except OSError:  # it ended, or is another user's
                    continue
                if wanted in variables.split(b"\0"):
                    found.append(int(folder.name))
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send it to all of them."""
        for pid in self.members():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def halt(self) -> None:
        """Pause them while another server is measured."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def end(self, patience: float = 15.0) -> None:
        """Resume them, ask them to end, and kill those that still run after ``patience`` seconds."""
        self.go_on()
        self.signal(signal.SIGTERM)
        given_up = time.monotonic() + patience
        while self.members() and time.monotonic() < given_up:
            time.sleep(0.1)
        self.signal(signal.SIGKILL)

    def memory(self) -> int:
        """Resident bytes of all; shared memory counts for each process."""
        total = 0
        for pid in self.members():
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
            except OSError:
                continue
        return total


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of ``pids`` and of their ended children, kernel and user."""
    ticks = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        # The name, in brackets, may hold anything; these four are the 14th to the 17th field.
        ticks += sum(map(int, text.rpartition(")")[2].split()[11:15]))
    return ticks / _TICK


Threads = Mapping[tuple[int, int], float]
"""Seconds of CPU by the ids of process and thread."""


def thread_cpu_seconds(pids: Iterable[int]) -> Threads:
    """CPU time of each thread of ``pids`` so far.

    In steps of nanoseconds if the kernel counts them, else in the steps of :func:`cpu_seconds`. Ended threads are left
    out.
    """
    found = {}
    for pid in pids:
        try:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
        except OSError:
            continue
        for thread in threads:
            try:
                found[pid, int(thread.name)] = _cpu_of_thread(thread)
            except OSError:
                continue
    return found


def _cpu_of_thread(folder: Path) -> float:
    try:
        nanoseconds = int((folder / "schedstat").read_text().split()[0])
    except FileNotFoundError:
        nanoseconds = 0
    # A kernel that does not count nanoseconds has no such file, or always 0 in it.
    if nanoseconds:
        return nanoseconds / 1e9
    return sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13])) / _TICK


def serving_cpu_seconds(before: Threads, after: Threads, computing: int) -> float:
    """CPU time of all threads but the ``computing`` ones between two results of :func:`thread_cpu_seconds`.

    The threads that compute are taken to be the busiest, without each process's main thread, which runs its event loop.
    Threads that started in between count from their start; threads that ended in between are not counted.
    """
    took = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
    others = sorted((seconds for (pid, thread), seconds in took.items() if thread != pid), reverse=True)
    return sum(took.values()) - sum(others[:computing])


def machine_cpu_seconds() -> float:
    """CPU time of all processes of this machine since it started."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / _TICK
