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
    controller = Path("/sys/fs/cgroup/cpu")
    group = (controller if controller.is_dir() else Path("/sys/fs/cgroup")) / f"inferd-test-{os.getpid()}"
    try:
        group.mkdir()
        if controller.is_dir():
            (group / "cpu.cfs_quota_us").write_text(quota)
        else:
            (group.parent / "cgroup.subtree_control").write_text("+cpu")
            (group / "cpu.max").write_text(f"{quota} {_PERIOD}")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group with a CPU quota can be made here: {error.strerror}")
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()
