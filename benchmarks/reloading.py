"""Measures reloads: swaps of a model under load, then loads and unloads, and the memory that stays.

    python -m benchmarks.reloading --out build/bench

First the file of a model is replaced ``--swaps`` times, each time with other weights, and SIGHUP tells the daemon,
while random arrivals go on. One time in ten the first new file is truncated, corrupt or of another kind, and the old
model keeps serving. Then clients load and unload another model ``--cycles`` times, sometimes a broken one. Bars:

- no request fails, and after each swap the new weights answer;
- resident memory after the last swap is within 5 % of what it was after the fifth;
- after the first twentieth of the cycles it rises by at most 5 % in all, by the slope of a line through it.

Prints the figures, writes reloading.json to ``--out`` and exits with 1 when a bar is missed.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tests.system.daemon import Daemon

from benchmarks.open_loop import METHOD, Outcome, poisson, quantile
from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import ov

SWAPPED, CYCLED = "swapped", "cycled"
WIDTH, ROWS = 256, 20_000
"""Of the weights: 20 MB, so that a leaked model shows."""
GROWTH_BAR = 0.05
CHUNK = 5.0
"""Seconds of load after which its outcomes are looked at."""
PATIENCE = 60.0

op = ov.opset13


def weights(factor: float) -> "ov.Model":
    """``x`` FP32 [1, 256] of ones -> ``y`` FP32 [1, 1]: ``factor`` times 256."""
    x = op.parameter([1, WIDTH], np.float32, name="x")
    x.output(0).set_names({"x"})
    spread = op.matmul(x, op.constant(np.full((WIDTH, ROWS), factor, np.float32)), False, False)
    y = op.reduce_mean(spread, op.constant(np.array([1])), keep_dims=True)
    y.output(0).set_names({"y"})
    return ov.Model([y], [x], "weights")


def put(repository: Path, name: str, factor: float) -> None:
    """Replace the model's files as a deployment does: write elsewhere, then move into place."""
    made = repository.parent / "made"
    made.mkdir(exist_ok=True)
    ov.save_model(weights(factor), made / "model.xml", compress_to_fp16=False)
    folder = repository / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("model.bin", "model.xml"):
        (made / file).replace(folder / file)


def spoil(repository: Path, name: str, how: int) -> None:
    """Replace the model with a broken one."""
    folder = repository / name / "1"
    match how % 3:
        case 0:
            (folder / "model.bin").write_bytes(b"short")
        case 1:
            (folder / "model.xml").write_bytes((folder / "model.xml").read_bytes()[:200])
        case _:
            (folder / "model.xml").write_bytes(np.random.default_rng(how).bytes(10_000))


def request(name: str) -> bytes:
    message = pb.ModelInferRequest(model_name=name)
    message.inputs.add(name="x", datatype="FP32", shape=[1, WIDTH])
    message.raw_input_contents.append(np.ones(WIDTH, np.float32).tobytes())
    return message.SerializeToString()


class Operator:
    """Changes models, and waits until the daemon has logged the result."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._channel = grpc.insecure_channel(daemon.grpc)
        self._infer = self._channel.unary_unary(METHOD)

    def reload(self) -> None:
        """SIGHUP, and its end."""
        before = self._ended()
        self._daemon.process.send_signal(signal.SIGHUP)
        given_up = time.monotonic() + PATIENCE
        while self._ended() == before:
            if time.monotonic() > given_up:
                raise SystemExit(f"no reload within {PATIENCE:.0f} s\n{self._daemon.log()}")
            time.sleep(0.02)  # the daemon reports it only in its log

    def answers(self, name: str) -> float:
        answer = pb.ModelInferResponse.FromString(self._infer(request(name), timeout=PATIENCE))
        return float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0])

    def call(self, method: str, name: str) -> grpc.StatusCode:
        message = getattr(pb, f"{method}Request")(model_name=name)
        path = f"{METHOD.rpartition('/')[0]}/{method}"
        try:
            self._channel.unary_unary(path)(message.SerializeToString(), timeout=PATIENCE)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def resident(self) -> float:
        """Bytes."""
        fields = Path(f"/proc/{self._daemon.process.pid}/statm").read_text().split()
        return int(fields[1]) * 4096.0

    def _ended(self) -> int:
        return sum(len(self._daemon.events(event)) for event in ("reloaded", "reloaded partially"))


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = Path(scratch) / "models"
        put(repository, SWAPPED, 1)
        flags = ("--cache-dir", f"{scratch}/cache", "--cache-max-bytes", "0", "--repository-control")
        with Daemon(repository, *flags) as daemon:
            operator = Operator(daemon)
            outcomes, swapped, wrong = uvloop.run(_swaps(operator, repository, options, daemon.grpc))
            cycled = _cycles(operator, repository, options.cycles)
    failed = Counter(outcome.code for outcome in outcomes if outcome.code != "OK")
    p99 = quantile([o.latency / 1e9 for o in outcomes if o.code == "OK"], 0.99) or 0.0
    after_fifth, last = swapped[min(4, len(swapped) - 1)], swapped[-1]
    growth = last / after_fifth - 1
    settled = cycled[len(cycled) // 20 :]
    slope = float(np.polyfit(np.arange(len(settled)), settled, 1)[0])
    risen = slope * len(settled) / settled[0]
    print(
        f"swaps      {len(swapped)}, {len(outcomes)} requests, failed: {dict(failed) or 'none'}, "
        f"p99 {p99 * 1000:.1f} ms"
    )
    print(
        f"memory     {after_fifth / 2**20:.0f} MiB after the fifth, {last / 2**20:.0f} MiB after the last: "
        f"{growth:+.1%}"
    )
    print(
        f"cycles     {len(cycled)}: {settled[0] / 2**20:.0f} to {settled[-1] / 2**20:.0f} MiB, "
        f"{slope / 2**10:+.1f} KiB a cycle, {risen:+.1%} in all"
    )
    missed = [
        *([f"requests failed: {dict(failed)}"] if failed else []),
        *([f"{wrong} swaps did not take"] if wrong else []),
        *([f"memory after the last swap is {growth:+.1%} of after the fifth"] if growth > GROWTH_BAR else []),
        *([f"memory rose by {risen:+.1%} over the cycles"] if risen > GROWTH_BAR else []),
    ]
    report = {"requests": len(outcomes), "failed": failed, "p99": p99, "swaps": swapped, "cycles": cycled}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "reloading.json").write_text(json.dumps({**report, "missed": missed}, indent=2) + "\n")
    for miss in missed:
        print(f"MISSED: {miss}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reloading", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0, help="random arrivals a second during the swaps")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


async def _swaps(
    operator: Operator, repository: Path, options: argparse.Namespace, target: str
) -> tuple[list[Outcome], list[float], int]:
    """Outcomes of the load, memory after each swap, and the number of wrong responses after a swap."""
    resident: list[float] = []
    wrong = 0

    def swap(number: int) -> None:
        nonlocal wrong
        if number % 10 == 9:
            spoil(repository, SWAPPED, number // 10)
            operator.reload()
            wrong += not np.isclose(operator.answers(SWAPPED), WIDTH * number, rtol=1e-3)
        put(repository, SWAPPED, number + 1)
        operator.reload()
        wrong += not np.isclose(operator.answers(SWAPPED), WIDTH * (number + 1), rtol=1e-3)
        resident.append(operator.resident())
        print(f"swap {number}: {resident[-1] / 2**20:.0f} MiB", flush=True)

    async def all_swaps() -> None:
        for number in range(1, options.swaps + 1):
            await asyncio.to_thread(swap, number)

    swapping = asyncio.create_task(all_swaps())
    outcomes: list[Outcome] = []
    while not swapping.done():
        outcomes += await poisson(target, request(SWAPPED), options.rate, CHUNK, len(outcomes))
    await swapping
    return outcomes, resident, wrong


def _cycles(operator: Operator, repository: Path, cycles: int) -> list[float]:
    """Memory after each."""
    resident = []
    for number in range(cycles):
        put(repository, CYCLED, number)
        expected = grpc.StatusCode.OK
        if number % 10 == 9:
            spoil(repository, CYCLED, number // 10)
            expected = grpc.StatusCode.UNAVAILABLE
        loaded = operator.call("RepositoryModelLoad", CYCLED)
        if loaded is not expected:
            raise SystemExit(f"cycle {number}: loading ended as {loaded.name}, not {expected.name}")
        operator.call("RepositoryModelUnload", CYCLED)
        resident.append(operator.resident())
        if number % 20 == 19:
            print(f"cycle {number + 1}: {resident[-1] / 2**20:.0f} MiB", flush=True)
    return resident


if __name__ == "__main__":
    sys.exit(main())
