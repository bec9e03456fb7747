"""OpenVINO's own benchmark: the model in a loop, with nothing around it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.peers.processes import cpu_seconds, machine_cpu_seconds
from benchmarks.peers.results import BENCHMARK_APP, BENCHMARK_APP_DEFAULTS, Result
from benchmarks.peers.workloads import Workload

_FIGURES = {
    "count": re.compile(r"Count:\s+(\d+) iterations"),
    "duration": re.compile(r"Duration:\s+([\d.]+) ms"),
    "throughput": re.compile(r"Throughput:\s+([\d.]+) FPS"),
}
_MEDIAN = re.compile(r"Median:\s+([\d.]+) (ms|us)")
_SECONDS = {"ms": 1e-3, "us": 1e-6}
_REQUESTS = re.compile(r"(\d+) inference requests")
_FIRST, _LAST = "First inference took", "[Step 11/11]"


def command(workload: Workload, streams: int, alone: bool, seconds: float) -> list[str]:
    """The command for as many infer requests as ``streams``, or for one ``alone``; it takes whole seconds.

    One alone runs by the synchronous API: `-nireq 1` would leave one stream, of all threads.
    """
    element = "i32" if workload.array.dtype == np.int32 else "f32"
    program = str(Path(sys.executable).with_name("benchmark_app"))
    arguments = ["-m", str(workload.file), "-d", "CPU", "-api", "sync" if alone else "async", "-hint", "none"]
    arguments += ["-infer_precision", "f32", "-ip", element, "-nstreams", str(streams), "-nthreads", str(streams)]
    return [program, *arguments, "-t", str(max(1, round(seconds)))]


def default_command(workload: Workload, alone: bool, seconds: float) -> list[str]:
    """The command of a user who names a model and nothing else, or ``alone`` the hint for latency.

    It chooses streams, threads and infer requests, computes in bf16 on a CPU that has it, and gives what it takes for
    an image as u8.
    """
    program = str(Path(sys.executable).with_name("benchmark_app"))
    hint = ["-hint", "latency"] if alone else []
    return [program, "-m", str(workload.file), "-d", "CPU", *hint, "-t", str(max(1, round(seconds)))]


def run(number: int, workload: Workload, streams: int, alone: bool, seconds: float, defaults: bool = False) -> Result:
    """One run, at inferd's precision and streams or at its own ``defaults``.

    CPU time is taken between its first inference and the end of its loop. Raises RuntimeError with its output when it
    fails.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    program = default_command(workload, alone, seconds) if defaults else command(workload, streams, alone, seconds)
    written, edges = [], []
    with subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            written.append(line)
            if _FIRST in line or line.startswith(_LAST):
                edges.append((cpu_seconds([process.pid]), machine_cpu_seconds()))
    text = "".join(written)
    figures = {name: float(found[1]) for name, pattern in _FIGURES.items() if (found := pattern.search(text))}
    latency, requests = _MEDIAN.search(text), _REQUESTS.search(text)
    if process.returncode or len(edges) != 2 or len(figures) != len(_FIGURES) or latency is None:
        raise RuntimeError(f"benchmark_app ended with status {process.returncode}\n{text[-2000:]}")
    (own, machine), (own_after, machine_after) = edges
    return Result(
        round=number,
        model=workload.name,
        server=BENCHMARK_APP_DEFAULTS if defaults else BENCHMARK_APP,
        way="async",
        concurrency=1 if alone else max(2, int(requests[1]) if defaults and requests else streams),
        throughput=figures["throughput"],
        p50=float(latency[1]) * _SECONDS[latency[2]],
        p99=None,
        server_cpu=(own_after - own) / figures["count"],
        client_cpu=None,
        foreign=((machine_after - machine) - (own_after - own)) / (figures["duration"] / 1000),
    )
