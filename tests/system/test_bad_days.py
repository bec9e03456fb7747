"""Three minutes of benchmarks/bad_days.py, with its bars but for latency and growth, which are figures."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.system

MINUTES = 3


@pytest.mark.timeout(MINUTES * 60 + 400)
def test_three_minutes_of_bad_days_cost_good_requests_nothing(tmp_path: Path, figure: Callable[[str], None]) -> None:
    # OpenVINO may keep a huge response's memory (fact 52).
    bars = ("--ratio", "inf", "--growth", "inf")
    command = ["-m", "benchmarks.bad_days", "--minutes", str(MINUTES), *bars, "--out", str(tmp_path)]
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    report = json.loads((tmp_path / "bad_days.json").read_text())
    assert report["missed"] == []
    assert list(report["good"]) == ["OK"]
    assert sum(report["bad"].values()) > 10
    p99 = {name: f"{1000 * seconds:.0f} ms" for name, seconds in report["p99"].items()}
    good, bad = report["good"]["OK"], sum(report["bad"].values())
    figure(
        f"bad days of {MINUTES} minutes: {good} good requests, {bad} bad things, "
        f"p99 {p99['alone']} alone and {p99['during']} during them, at most {report['most'] >> 20} MiB"
    )
