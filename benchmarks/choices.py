"""Compares the hot path with its alternatives: event loops, ways to run a model, the switch interval, protobuf.

    python -m benchmarks.choices --rounds 5 --out build/bench

One server of each kind (benchmarks/choices_server.py) is started once. A round sends requests of 1 KiB to each of them
in turn over one connection, with 1 and then 16 in flight, and reads the CPU time of the server's process from the
kernel. The order changes from round to round, and ratios are taken within a round. The cost of messages is this
process's own CPU time in the same rounds. Prints medians with minimum and maximum, and writes choices.json. Takes four
to five minutes with the default options.
"""

import argparse
import asyncio
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tests.system.wire import request

from benchmarks.choices_server import NBYTES, SYNC
from benchmarks.open_loop import CHANNEL_OPTIONS, METHOD, quantile
from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import keep_small_blocks
from inferd.rpc import codec, wire
from inferd.rpc.parameters import NO_PARAMETERS
from inferd.rpc.parameters import decode as decode_parameters
from inferd.rpc.request_templates import RequestSpec, TemplateCache
from inferd.tensors import Dim, DType, Signature, Tensor, TensorSpec

IN_FLIGHT = (1, 16)
NO_OP, SHORT = 0, 80
"""Steps of the models' (choices_server.model)."""
INTERVALS = (0.0005, 0.02)
"""Seconds, in addition to CPython's default of 0.005."""
SIZES = {"1 KB": 256, "600 KB": 3 * 224 * 224}
"""FP32 values of a message's tensor."""
# M_TRIM_THRESHOLD of malloc.h, and its value here: by default glibc returns free memory at the end of the heap from 128
# KiB on, and asking for it again would cost far more than handling a message of 600 KB.
_M_TRIM_THRESHOLD, _KEPT = -1, 64 << 20
# Python lacks clock_getcpuclockid(3) for a process: CPUCLOCK_SCHED, nanoseconds of all its threads.
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class Way:
    """One kind of server: ``engine`` runs a model of ``steps``, or none. An ``interval`` of 0 is CPython's own switch
    interval; with 0 ``threads`` a synchronous server has as many as the process may use CPUs."""

    server: str
    engine: str = "none"
    steps: int = NO_OP
    interval: float = 0.0
    threads: int = 0

    @property
    def name(self) -> str:
        what = "echo" if self.engine == "none" else "no-op" if self.steps == NO_OP else "short"
        parts = [what, self.server if self.server == SYNC or self.engine == "none" else self.engine]
        parts += [f"{self.threads} threads"] if self.threads else []
        parts += [f"{self.interval * 1000:g} ms"] if self.interval else []
        return ", ".join(parts)

    @property
    def command(self) -> list[str]:
        given = ["--steps", str(self.steps)]
        given += ["--switch-interval", str(self.interval)] if self.interval else []
        given += ["--threads", str(self.threads)] if self.threads else []
        return [sys.executable, "-m", "benchmarks.choices_server", self.server, self.engine, *given]


# A handler that waits for its run keeps a thread: with two threads all but two requests wait in gRPC's queue.
MANY_THREADS = 16
ECHOES = [Way("uvloop"), Way("asyncio"), Way(SYNC), Way(SYNC, threads=MANY_THREADS)]
MODELS = {
    steps: [
        *(Way("uvloop", engine, steps) for engine in ("inline", "async", "threads")),
        *(Way(SYNC, "inline", steps, threads=threads) for threads in (0, MANY_THREADS)),
    ]
    for steps in (NO_OP, SHORT)
}
COMPARED = [
    ECHOES,
    *MODELS.values(),
    *([way, *(replace(way, interval=each) for each in INTERVALS)] for way in MODELS[NO_OP][1:4]),
]
"""The others are compared with the first of each."""


@dataclass(frozen=True, slots=True)
class Server:
    """Its address, its process, and microseconds of a run of its model alone."""

    target: str
    pid: int
    run: float


@dataclass(frozen=True, slots=True)
class Look:
    """One server for about a second: microseconds of its CPU a response, the median latency in microseconds, and
    responses a second."""

    cpu: float
    p50: float
    rate: float


Looks = dict[str, dict[int, list[Look]]]
Costs = dict[str, dict[str, list[float]]]
"""Microseconds round by round, by operation on a message and by way; the others are compared with the first."""


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    keep_small_blocks()
    ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, _KEPT)
    ways = list(dict.fromkeys(way for group in COMPARED for way in group))
    looks: Looks = {way.name: {many: [] for many in IN_FLIGHT} for way in ways}
    messages, costs = _messages(), dict[str, dict[str, list[float]]]()
    with ExitStack() as stack:
        servers = {way: stack.enter_context(_served(way)) for way in ways}
        for number in range(-1, options.rounds):
            # The round before the first warms up.
            seconds = options.seconds if number >= 0 else options.seconds / 4
            for place in range(len(ways)):
                way = ways[(number + place) % len(ways)]
                for many in IN_FLIGHT:
                    look = uvloop.run(_look(servers[way], many, seconds))
                    if number >= 0:
                        looks[way.name][many].append(look)
            for what, hows in messages.items():
                for how, do in hows.items():
                    cost = _cost(do, seconds / 10)
                    if number >= 0:
                        costs.setdefault(what, {}).setdefault(how, []).append(cost)
            print(f"round {number + 1} of {options.rounds}", flush=True)
    runs = {way.name: servers[way].run for way in ways}
    print(f"a run alone: {', '.join(f'{way.name} {runs[way.name]:.0f} us' for way in (m[0] for m in MODELS.values()))}")
    _print_looks(looks)
    _print_costs(costs)
    options.out.mkdir(parents=True, exist_ok=True)
    listed = {name: {many: [asdict(look) for look in each] for many, each in of.items()} for name, of in looks.items()}
    report = {"looks": listed, "messages": costs, "runs": runs}
    (options.out / "choices.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choices", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one look")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


@contextmanager
def _served(way: Way) -> Iterator[Server]:
    with subprocess.Popen(way.command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            # The echo prints only its port.
            port, run = [*process.stdout.readline().split(), "0"][:2]
            yield Server(f"127.0.0.1:{port}", process.pid, float(run))
        finally:
            process.kill()


async def _look(server: Server, in_flight: int, seconds: float) -> Look:
    message, took = bytes(NBYTES), list[float]()
    async with grpc.aio.insecure_channel(server.target, options=CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        send = channel.unary_unary(METHOD)
        cpu, begun = _cpu(server.pid), time.perf_counter()

        async def ask() -> None:
            while (at := time.perf_counter()) < begun + seconds:
                await send(message)
                took.append(time.perf_counter() - at)

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(ask())
        cpu, passed = _cpu(server.pid) - cpu, time.perf_counter() - begun
    return Look(cpu / len(took) * 1e6, (quantile(took, 0.5) or 0.0) * 1e6, len(took) / passed)


def _cpu(pid: int) -> float:
    """Seconds of CPU that the process has taken."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def _messages() -> dict[str, dict[str, Callable[[], object]]]:
    """Operations on messages, and three ways to do each: protobuf alone, inferd without a template, and inferd with a
    template of the head. A request's tensor is copied to where a model would read it."""
    ways = {}
    for size, elements in SIZES.items():
        dims = (Dim(elements, elements),)
        signature = Signature((TensorSpec("x", DType.FP32, dims),), (TensorSpec("y", DType.FP32, dims),))
        raw = request("model", {"x": np.zeros(elements, np.float32)}).SerializeToString()
        target = memoryview(bytearray(elements * DType.FP32.itemsize))
        outputs = [Tensor(DType.FP32, (elements,), np.zeros(elements, np.float32).data)]
        templates = TemplateCache()
        split = wire.split_request(raw)
        assert split is not None
        message = pb.ModelInferRequest.FromString(raw)
        inputs = codec.decode_inputs(message, signature)
        templates.keep(split, message, signature, inputs, RequestSpec((0,), NO_PARAMETERS, 1, None), ("model", "1"))
        ways[f"request of {size}"] = {
            "protobuf": _read_by_protobuf(raw, target),
            "inferd, parsed": _parsed(raw, target, signature),
            "inferd, known": _known(raw, target, templates),
        }
        ways[f"answer of {size}"] = {
            "protobuf": _built_by_protobuf(signature, outputs),
            "inferd, known": _joined(templates, split.head, outputs),
        }
    return ways


def _read_by_protobuf(raw: bytes, target: memoryview) -> Callable[[], object]:
    def read() -> object:
        message = pb.ModelInferRequest.FromString(raw)
        item = message.inputs[0]
        target[:] = message.raw_input_contents[0]
        return message.model_name, message.model_version, message.id, item.name, item.datatype, tuple(item.shape)

    return read


def _parsed(raw: bytes, target: memoryview, signature: Signature) -> Callable[[], object]:
    def read() -> object:
        message = codec.parse(raw, pb.ModelInferRequest)
        inputs = codec.decode_inputs(message, signature)
        target[:] = inputs[0].data  # type: ignore[assignment]
        return decode_parameters(message), codec.decode_outputs(message, signature)

    return read


def _known(raw: bytes, target: memoryview, templates: TemplateCache) -> Callable[[], object]:
    def read() -> None:
        split = wire.split_request(raw)
        assert split is not None
        template = templates.get(split.head)
        assert template is not None
        inputs = template.tensors(split.contents)
        assert inputs is not None
        target[:] = inputs[0].data  # type: ignore[assignment]

    return read


def _built_by_protobuf(signature: Signature, outputs: list[Tensor]) -> Callable[[], object]:
    return lambda: b"".join(codec.encode("model", "1", "", signature.outputs, outputs))


def _joined(templates: TemplateCache, head: bytes, outputs: list[Tensor]) -> Callable[[], object]:
    template = templates.get(head)
    assert template is not None
    return lambda: wire.as_unary(*template.answer("", outputs))


def _cost(do: Callable[[], object], seconds: float) -> float:
    """Microseconds of this thread's CPU that ``do`` takes."""
    count, begun = 0, time.thread_time()
    while (took := time.thread_time() - begun) < seconds:
        for _ in range(20):
            do()
        count += 20
    return took / count * 1e6


def _print_looks(looks: Looks) -> None:
    print(f"\n{'':24}{'1 in flight: CPU us':>34}{'p50 us':>34}{'16 in flight: CPU us':>34}{'answers/s':>34}")
    few, many = IN_FLIGHT
    for first, *others in COMPARED:
        for way in (first, *others):
            mine, its = looks[way.name], looks[first.name]
            cells = [
                _cell([figure(look) for look in mine[of]], [figure(look) for look in its[of]])
                for of, figure in ((few, _of_cpu), (few, _of_p50), (many, _of_cpu), (many, _of_rate))
            ]
            print(f"{way.name:24}{''.join(f'{cell:>34}' for cell in cells)}")
        print()


def _of_cpu(look: Look) -> float:
    return look.cpu


def _of_p50(look: Look) -> float:
    return look.p50


def _of_rate(look: Look) -> float:
    return look.rate


def _print_costs(costs: Costs) -> None:
    for what, hows in costs.items():
        first = next(iter(hows.values()))
        for how, each in hows.items():
            print(f"{what:20}{how:16}{_cell(each, first, '.1f'):>36}")


def _cell(mine: list[float], its: list[float], digits: str = ".0f") -> str:
    """The median, and the median ratio to the first with minimum and maximum over the rounds."""
    median = f"{statistics.median(mine):{digits}}"
    if mine is its or mine == its:
        return f"{median:>8}{'':22}"
    ratios = [one / other for one, other in zip(mine, its, strict=True)]
    return f"{median:>8}  {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]".ljust(30)


if __name__ == "__main__":
    sys.exit(main())
