"""Measures how many good requests are answered while one request in ten is bad.

    python -m benchmarks.failed_runs [--seconds 2] [--rounds 3]

For each kind of failure, rounds with bad requests and without alternate on one daemon. The same connections send both,
one after the other, so one bad request in ten leaves a tenth fewer good ones. Bad inputs are all different, so that
the daemon knows none of them from before. Prints JSON: good responses a second in each round, the ratio of their
medians, and how many good requests failed.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests import models
from tests.system.daemon import Daemon
from tests.system.failing_models import KINDS, Inputs, Kind
from tests.system.wire import OK, connect, method, request

CLIENTS = 4
BAD = 10


def varied(inputs: Inputs, chance: np.random.Generator) -> Inputs:
    """``inputs`` with other numbers of the same signs: as bad as before."""
    factor = np.float32(chance.uniform(0.5, 1.5))
    return {name: x * factor if x.dtype == np.float32 else x for name, x in inputs.items()}


async def round_of(target: str, model: str, kind: Kind, seconds: float, *, bad: bool) -> tuple[float, int]:
    """Good responses a second, and good requests that failed."""
    until, answered, failed = time.monotonic() + seconds, 0, 0

    async def client(seed: int) -> None:
        nonlocal answered, failed
        chance, turn = np.random.default_rng(seed), seed
        async with connect(target) as channel:
            infer = method(channel, "ModelInfer")
            while time.monotonic() < until:
                turn += 1
                if bad and turn % BAD == 0:
                    await infer(request(model, varied(kind.bad[turn % len(kind.bad)], chance))).code()
                    continue
                code = await infer(request(model, kind.good[turn % len(kind.good)])).code()
                answered += code is OK
                failed += code is not OK

    await asyncio.gather(*map(client, range(CLIENTS)))
    return answered / seconds, failed


async def measured(target: str, model: str, kind: Kind, seconds: float, rounds: int) -> dict[str, Any]:
    rates: dict[bool, list[float]] = {False: [], True: []}
    failed = 0
    await round_of(target, model, kind, seconds / 4, bad=False)
    for _ in range(rounds):
        for bad in (False, True):
            rate, lost = await round_of(target, model, kind, seconds, bad=bad)
            rates[bad].append(round(rate, 1))
            failed += lost
    without, mixed = statistics.median(rates[False]), statistics.median(rates[True])
    return {"without": rates[False], "with": rates[True], "ratio": round(mixed / without, 3), "failed": failed}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        for name in asked.kinds:
            models.save(KINDS[name]().network, repository, name, settings="[warmup]\nruns = 0\n")
        with Daemon(repository, "--cache-dir", str(Path(folder) / "cache")) as daemon:
            results = {
                name: asyncio.run(measured(daemon.grpc, name, KINDS[name](), asked.seconds, asked.rounds))
                for name in asked.kinds
            }
    print(json.dumps({"bad": 1 / BAD, "clients": CLIENTS, "seconds": asked.seconds, "kinds": results}, indent=2))


if __name__ == "__main__":
    main()
