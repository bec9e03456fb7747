"""Measures the server CPU of checking that numbers fit a device's range: an inference with the check, and without.

    python -m benchmarks.numbers --rounds 5 --out build/bench

The models return the first element of INT64 or FP64 inputs of several sizes. They compute little else, so no model
shows more of the check. One daemon serves each twice, with `out_of_range` "refuse" and "accept". Each round sends both
the same requests, one after the other in alternating order with a fixed number in flight, and reads the daemon's CPU
time from the kernel. Prints microseconds an inference and the ratio of both, as medians over the rounds with minimum
and maximum, and writes numbers.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import uvloop
from tests import models
from tests.engine import models as small
from tests.system.daemon import Daemon
from tests.system.wire import request

from benchmarks.open_loop import METHOD, connected
from benchmarks.shared_memory import Server
from inferd.engine.runtime import ov
from inferd.tensors import DType

SETTINGS = ("refuse", "accept")
TYPES = {DType.INT64: ov.Type.i64, DType.FP64: ov.Type.f64}
# By elements of the input, requests in a round as a multiple of --count.
SIZES = {1: 1.0, 128: 1.0, 8192: 0.5, 131072: 0.1}


@dataclass(frozen=True, slots=True)
class Figure:
    """One type and number of elements, round by round: microseconds of server CPU an inference by setting, and their
    ratio."""

    model: str
    refuse: list[float]
    accept: list[float]
    ratios: list[float]

    def line(self) -> str:
        checked, unchecked = statistics.median(self.refuse), statistics.median(self.accept)
        return (
            f"{self.model:14} {checked:7.0f} us with, {unchecked:7.0f} us without the check: "
            f"{statistics.median(self.ratios):.3f} ({min(self.ratios):.3f} to {max(self.ratios):.3f})"
        )


def first(dtype: DType) -> "ov.Model":
    """``x`` -> ``y``, the first of its elements."""
    x = small.parameter([-1], TYPES[dtype])
    return small.model({"y": small.op.gather(x, small.op.constant([0]), small.op.constant(0))}, [x])


async def compare(daemon: Daemon, rounds: int, count: int, in_flight: int) -> list[Figure]:
    figures = []
    async with AsyncExitStack() as stack:
        server = Server(daemon, [c.unary_unary(METHOD) for c in await connected(stack, daemon.grpc)])
        for dtype in TYPES:
            for size, part in SIZES.items():
                values = np.arange(size).astype(dtype.numpy)
                asked = {
                    setting: [request(f"{dtype.wire}-{setting}", {"x": values}).SerializeToString()] * in_flight
                    for setting in SETTINGS
                }
                took: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
                for number in range(-1, rounds):
                    for setting in SETTINGS if number % 2 else reversed(SETTINGS):
                        cpu = await server.measure(asked[setting], int(count * part))
                        # The round before the first warms up.
                        if number >= 0:
                            took[setting].append(cpu)
                ratios = [one / other for one, other in zip(took["refuse"], took["accept"], strict=True)]
                figures.append(Figure(f"{dtype.wire} {size}", took["refuse"], took["accept"], ratios))
                print(figures[-1].line(), flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000, help="requests of each setting and round, of small inputs")
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for dtype in TYPES:
            for setting in SETTINGS:
                text = f"[numbers]\nout_of_range = '{setting}'\n[execution]\nstreams = 1\n"
                models.save(first(dtype), Path(folder) / "models", f"{dtype.wire}-{setting}", settings=text)
        flags = ("--cache-dir", str(Path(folder) / "cache"), "--probe-interval", "0")
        with Daemon(Path(folder) / "models", *flags) as daemon:
            figures = uvloop.run(compare(daemon, given.rounds, given.count, given.in_flight))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "numbers.json").write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
