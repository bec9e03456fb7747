"""Synthetic machines as control groups show them, and real groups with a quota."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

# The kernel's usual one, in microseconds.
_PERIOD = 100_000


def machine(
    root: Path, membership: str, groups: Mapping[str, str], proc: Mapping[str, str] | None = None
) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup below ``root``, of a process whose /proc/self/cgroup says ``membership``.

    ``groups`` and ``proc`` are further files there.
    """
    at_proc, at_groups = root / "proc", root / "sys" / "fs" / "cgroup"
    at_groups.mkdir(parents=True)
    for place, files in ((at_groups, groups), (at_proc, {"self/cgroup": membership, **(proc or {})})):
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return at_proc, at_groups


@contextmanager
def under_quota(cpus: float) -> Iterator[list[str]]:
    """A command that puts its own under a quota of ``cpus``, in a control group made for it; else skips the test."""
    quota = str(round(cpus * _PERIOD))
    files = {1: ("cpu.cfs_quota_us", quota), 2: ("cpu.max", f"{quota} {_PERIOD}")}
    with _in_group("cpu", files) as command:
        if not command:
            pytest.skip("no control group with a CPU quota can be made here")
        yield command


@contextmanager
def under_memory_limit(limit: int) -> Iterator[list[str]]:
    """A command that puts its own in a control group of ``limit`` bytes; empty where none can be made."""
    files = {1: ("memory.limit_in_bytes", str(limit)), 2: ("memory.max", str(limit))}
    with _in_group("memory", files) as command:
        yield command


@contextmanager
def _in_group(controller: str, files: Mapping[int, tuple[str, str]]) -> Iterator[list[str]]:
    """A command that puts its own in a new group, in which the file for the version of groups has that text; empty
    where there is none."""
    mount = Path("/sys/fs/cgroup")
    version, parent = (1, mount / controller) if (mount / controller).is_dir() else (2, mount)
    name, text = files[version]
    group = parent / f"inferd-test-{os.getpid()}"
    made = False
    try:
        group.mkdir()
        made = True
        if version == 2:
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        (group / name).write_text(text)
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    except OSError:
        command = []
    try:
        yield command
    finally:
        if made:
            group.rmdir()
