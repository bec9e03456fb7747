"""Three minutes of benchmarks/soak.py, with the same bars."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.system

MINUTES = 3


@pytest.mark.timeout(MINUTES * 60 + 300)
def test_three_minutes_of_everything_leave_nothing_behind(tmp_path: Path, figure: Callable[[str], None]) -> None:
    # Memory that has hardly settled by the second fifth of so short a time may go on a little.
    command = ["-m", "benchmarks.soak", "--minutes", str(MINUTES), "--growth", "0.1", "--out", str(tmp_path)]
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["missed"] == []
    assert report["good"] > 1000
    p999 = report["quantiles"]["p99.9"]
    figure(f"soak of {MINUTES} minutes: {report['good']} good requests, none failed, p99.9 {1000 * p999:.0f} ms")
