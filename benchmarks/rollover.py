"""Measures what clients notice when one daemon takes over from another on the same port.

    python -m benchmarks.rollover --out build/bench

Daemons with reuse_port take turns: the next one starts next to the one that serves, and once it is ready the old one
gets SIGTERM and drains. Two kinds of clients send at a steady pace throughout: some retry as gRPC's service config says
(docs/systemd.md), the others never do. Every second one keeps its own connection; the others open a new connection for
each request. Bar:

- no request of the clients that retry fails.

Prints, without a bar, how many requests fail without retries and how long requests took around the takeover. Writes
rollover.json to ``--out`` and exits with 1 when the bar is missed.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import uvloop
from tests import models
from tests.system.daemon import Daemon

from benchmarks.open_loop import CHANNEL_OPTIONS, METHOD, quantile
from benchmarks.overload import products, request_for

MODEL = "products"
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                # A connection that the old daemon cut during its handshake is tried again after a second: retries must
                # last longer than that.
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                # gRPC itself answers CANCELLED to a call on a server that is closing.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}
"""The configuration that docs/systemd.md recommends."""
DEADLINE = 20.0


@dataclass(slots=True)
class Group:
    """Clients of one kind: requests by code, and (when due, seconds taken) of each."""

    codes: Counter[str] = field(default_factory=Counter)
    took: list[tuple[float, float]] = field(default_factory=list)

    @property
    def failed(self) -> dict[str, int]:
        return {code: n for code, n in sorted(self.codes.items()) if code != "OK"}


@dataclass(frozen=True, slots=True)
class Report:
    """Per kind of client: requests, failures by code, p50 and p99 in seconds, the maximum, and p99 of the requests due
    within a second of a SIGTERM."""

    requests: int
    failed: dict[str, int]
    p50: float | None
    p99: float | None
    longest: float
    p99_around: float | None

    @classmethod
    def of(cls, group: Group, changes: Sequence[float]) -> "Report":
        took = [t for _, t in group.timings]
        around = [t for due, t in group.timings if any(abs(due - change) < 1 for change in changes)]
        requests = sum(group.codes.values())
        return cls(requests, group.failed, quantile(took, 0.5), quantile(took, 0.99), max(took), quantile(around, 0.99))

    def __str__(self) -> str:
        failed = ", ".join(f"{n} {code}" for code, n in self.failed.items()) or "none failed"
        times = "   ".join(
            f"{name} {value * 1000:.1f} ms"
            for name, value in (
                ("p50", self.p50),
                ("p99", self.p99),
                ("p99 around", self.p99_around),
                ("longest", self.longest),
            )
            if value is not None
        )
        return f"{self.requests} requests, {failed}; {times}"


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        folder = Path(scratch)
        models.save(products(options.products), folder / "models", MODEL)
        retrying, plain, changes = uvloop.run(_roll(folder, options))
    reports = {"retrying": Report.of(retrying, changes), "plain": Report.of(plain, changes)}
    print(f"\n{len(changes)} roll-overs")
    for name, report in reports.items():
        print(f"{name:9} {report}")
    missed = [f"requests failed in spite of retries: {retrying.failed}"] if retrying.failed else []
    options.out.mkdir(parents=True, exist_ok=True)
    text = {name: asdict(report) for name, report in reports.items()} | {"rollovers": len(changes), "missed": missed}
    (options.out / "rollover.json").write_text(json.dumps(text, indent=2) + "\n")
    for miss in missed:
        print(f"MISSED: {miss}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollover", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="roll-overs, one after the other")
    parser.add_argument("--clients", type=int, default=8, help="of each kind")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second of each client")
    parser.add_argument("--quiet", type=float, default=3.0, help="seconds from one roll-over to the next")
    parser.add_argument("--products", type=int, default=1, help="matrix products in the model: what a run costs")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


async def _roll(folder: Path, options: argparse.Namespace) -> tuple[Group, Group, list[float]]:
    """The requests of both groups, and the time of each SIGTERM."""
    retrying, plain, changes = Group(), Group(), []
    with ExitStack() as stack:
        serving = stack.enter_context(_daemon(folder, "127.0.0.1:0"))
        address = serving.grpc
        request = await asyncio.to_thread(request_for, address, MODEL)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as clients:
            for number in range(options.clients):
                for group, retries in ((retrying, True), (plain, False)):
                    pace = (number / options.clients / options.rate, 1 / options.rate)
                    keeps = number % 2 == 0
                    clients.create_task(_client(address, request, group, pace, over, retries=retries, keeps=keeps))
            try:
                for number in range(options.rounds):
                    await asyncio.sleep(options.quiet)
                    following = await asyncio.to_thread(stack.enter_context, _daemon(folder, address))
                    before = sum(plain.failed.values())
                    changes.append(time.monotonic())
                    status = await asyncio.to_thread(serving.stop, signal.SIGTERM)
                    if status:
                        raise SystemExit(f"a daemon ended with {status}\n{serving.log()}")
                    took, lost = time.monotonic() - changes[-1], sum(plain.failed.values()) - before
                    print(f"roll-over {number + 1}: drained in {took:.2f} s, {lost} failed without retries", flush=True)
                    serving = following
                await asyncio.sleep(options.quiet)
            finally:
                over.set()
    return retrying, plain, changes


def _daemon(folder: Path, address: str) -> Daemon:
    return Daemon(
        folder / "models",
        "--reuse-port",
        *("--grpc-bind", address, "--cache-dir", f"{folder}/cache", "--profile-dir", f"{folder}/profiles"),
    )


async def _client(
    address: str,
    request: bytes,
    group: Group,
    pace: tuple[float, float],
    over: asyncio.Event,
    *,
    retries: bool,
    keeps: bool,
) -> None:
    """Send one request at a time until ``over``: ``pace`` has the seconds until the first, and from one to the next.
    Unless it ``keeps`` its connection, each request is over a new one."""
    due = time.monotonic() + pace[0]
    channel = None
    while not over.is_set():
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        began, code = time.monotonic(), "OK"
        channel = channel or _connected(address, retries=retries)
        try:
            await channel.unary_unary(METHOD)(request, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        group.codes[code] += 1
        group.timings.append((began, time.monotonic() - began))
        if not keeps:
            await channel.close()
            channel = None
        due = max(due + pace[1], time.monotonic())
    if channel is not None:
        await channel.close()


def _connected(address: str, *, retries: bool) -> grpc.aio.Channel:
    if not retries:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    kept = [option for option in CHANNEL_OPTIONS if option[0] != "grpc.enable_retries"]
    return grpc.aio.insecure_channel(address, options=[*kept, ("grpc.service_config", json.dumps(SERVICE_CONFIG))])


if __name__ == "__main__":
    sys.exit(main())
