"""Connections leave descriptors for everything else."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from inferd import descriptors

WANTED, FILES = st.integers(1, 1 << 31), st.integers(0, 1 << 31)


@given(WANTED, FILES)
def test_connections_leave_a_reserve(wanted: int, files: int) -> None:
    calls, metrics = descriptors.for_calls(wanted, files), descriptors.for_metrics(wanted, files)
    assert 1 <= calls <= wanted
    assert 1 <= metrics <= wanted
    if files >= 64:
        reserve = min(256, max(48, files // 2))
        assert files - calls >= reserve
        assert calls == wanted or files - calls == reserve
        assert metrics <= max(1, reserve / 4)


@given(WANTED, FILES, FILES)
def test_more_files_never_mean_fewer_connections(wanted: int, files: int, other: int) -> None:
    low, high = sorted((files, other))
    assert descriptors.for_calls(wanted, low) <= descriptors.for_calls(wanted, high)
    assert descriptors.for_metrics(wanted, low) <= descriptors.for_metrics(wanted, high)


def test_the_limit_is_the_process_s_own() -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (77, 77))"
    code += "; from inferd import descriptors; print(descriptors.most_files())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "77\n"
