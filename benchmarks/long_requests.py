"""Measures how long other clients wait for one request that is as long as it may be, whatever it holds.

    python -m benchmarks.long_requests --rounds 3 --out build/bench

One client sends one long request after the other: large tensors in each of the ways to send them, strings by the
million, and lists of whatever a message may list. Another, in a process of its own, sends a small request every few
milliseconds. Prints for each kind the longest that a small one took, as the median over rounds and the most, what the
daemon has grown by, and what it said to the long one; writes long_requests.json. Exits with 1 if a small request took
longer than the bar: 50 ms, or for large messages and tensors 4 ms for each MiB.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
from tests import models
from tests.system.daemon import Daemon
from tests.system.memory import Growth
from tests.system.wire import request

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc.message_parts import encoded_length
from inferd.tensors import DType

INFER = "/inference.GRPCInferenceService/ModelInfer"
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
MIB = 1 << 20
# Just below the default of max_message_bytes.
LONG = 63 * MIB
BAR, BAR_EACH_MIB = 0.05, 0.004
PAUSE = 0.005


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of long request: its message, and bytes of its tensor."""

    name: str
    raw: bytes
    method: str = INFER
    tensor: int = 0

    @property
    def bar(self) -> float:
        """Seconds that a small request may take meanwhile."""
        return max(BAR, max(len(self.raw), self.tensor) / MIB * BAR_EACH_MIB)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured for one kind: seconds of the slowest small request by rounds, and bytes of growth."""

    kind: str
    nbytes: int
    waits: list[float]
    bar: float
    grown: int
    said: str

    def line(self) -> str:
        missed = "  MISSED" if statistics.median(self.waits) > self.bar else ""
        waits = f"{statistics.median(self.waits) * 1000:6.0f} ms ({max(self.waits) * 1000:.0f})"
        return (
            f"{self.kind:38} {self.nbytes / MIB:5.1f} MiB {waits:18} +{self.grown / MIB:5.0f} MiB  {self.said}{missed}"
        )


def main() -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_requests", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="kinds whose names contain this")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        return _probe(options.probe)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = Path(scratch) / "models"
        for dtype in (DType.FP32, DType.INT64, DType.INT32, DType.BOOL, DType.BYTES):
            models.save(models.identity(dtype, [-1]), repository, dtype.name.lower())
        with Daemon(repository, "--cache-dir", f"{scratch}/cache") as daemon:
            figures = list(_measured(daemon, options.rounds, options.only))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "long_requests.json").write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    return 1 if any(statistics.median(figure.waits) > figure.bar for figure in figures) else 0


def _measured(daemon: Daemon, rounds: int, only: str) -> Iterator[Figure]:
    command = [sys.executable, "-m", "benchmarks.long_requests", "--probe", daemon.grpc]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe,
        grpc.insecure_channel(daemon.grpc, UNLIMITED) as channel,
    ):
        try:
            _longest(probe)
            for kind in _kinds():
                if only in kind.name:
                    yield _figure(kind, daemon, probe, channel, rounds)
        finally:
            probe.kill()


def _figure(kind: Kind, daemon: Daemon, probe: "subprocess.Popen[str]", channel: grpc.Channel, rounds: int) -> Figure:
    growth, waits, said = Growth(daemon.process.pid), [], "OK"
    call = channel.unary_unary(kind.method)
    for _ in range(rounds):
        _longest(probe)
        try:
            call(kind.raw, timeout=120)
        except grpc.RpcError as error:
            said = f"{error.code().name}: {(error.details() or '')[:70]}"  # type: ignore[attr-defined]
        time.sleep(10 * PAUSE)
        waits.append(_longest(probe))
    figure = Figure(kind.name, len(kind.raw), waits, kind.bar, growth.peak, said)
    print(figure.line(), flush=True)
    return figure


def _longest(probe: "subprocess.Popen[str]") -> float:
    """Seconds of the slowest small request since the last call."""
    assert probe.stdin is not None
    assert probe.stdout is not None
    print(file=probe.stdin, flush=True)
    return float(probe.stdout.readline())


def _probe(address: str) -> int:
    """Small requests, one every few milliseconds; prints the slowest since the last line read."""
    import threading

    longest = 0.0
    message = request("fp32", {"x": np.zeros(4, np.float32)}).SerializeToString()
    begun: list[float] = []

    def send() -> None:
        nonlocal longest
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(INFER)
            while True:
                begun[:] = [time.monotonic()]
                call(message, timeout=120)
                longest = max(longest, time.monotonic() - begun[0])
                time.sleep(PAUSE)

    threading.Thread(target=send, daemon=True).start()
    time.sleep(0.5)
    for _ in sys.stdin:
        print(longest, flush=True)
        longest = 0.0
    return 0


def _kinds() -> Iterator[Kind]:
    """All of them, the shortest of each first. Made one at a time: some take gigabytes while they are made."""
    for dtype, numpy in ((DType.FP32, np.float32), (DType.INT64, np.int64), (DType.BOOL, np.bool_)):
        for nbytes in (MIB, 16 * MIB, LONG):
            array = np.zeros(nbytes // dtype.itemsize, numpy)
            yield _tensor(f"{dtype.name} raw", dtype, len(array), array.tobytes())
    for nbytes in (MIB, 4 * MIB, LONG):
        floats = pb.InferTensorContents(fp32_contents=np.zeros(nbytes // 4, np.float32))
        yield _typed("FP32 typed", DType.FP32, nbytes // 4, floats)
    for nbytes in (MIB // 2, MIB - 1, LONG):
        yield _typed("INT64 typed", DType.INT64, nbytes, _packed(3, bytes(nbytes)))
        yield _typed("INT32 typed", DType.INT32, nbytes, _packed(2, bytes(nbytes)))
    for count in (1 << 15, 1 << 20, 4 * MIB, LONG // 4):
        yield _tensor(f"{count} empty strings raw", DType.BYTES, count, bytes(4 * count))
    for count in (1 << 15, 1 << 20, LONG // 2):
        yield _typed(f"{count} empty strings typed", DType.BYTES, count, b"\x42\0" * count)
    yield _tensor("a string raw", DType.BYTES, 1, (LONG - 4).to_bytes(4, "little") + bytes(LONG - 5) + b"x")
    head = pb.ModelInferRequest(model_name="fp32").SerializeToString()
    for nbytes in (4 * MIB, LONG):
        yield Kind("empty inputs", head + b"\x2a\0" * (nbytes // 2))
        yield Kind("empty outputs", head + b"\x32\0" * (nbytes // 2))
        yield Kind("empty contents", head + b"\x3a\0" * (nbytes // 2))
        parameters = b"".join(b"\x22\x0a\x0a\x08" + b"%08x" % n for n in range(nbytes // 12))
        yield Kind("parameters", head + parameters)
        shape = b"\x1a" + encoded_length(nbytes) + bytes(nbytes)
        yield Kind("dimensions", head + b"\x2a" + encoded_length(len(shape)) + shape)
        yield Kind("unknown fields", head + b"\xf8\x7f\0" * (nbytes // 3))
        name = b"\x0a" + encoded_length(nbytes) + b"x" * nbytes
        yield Kind("a model's name", name)
        yield Kind("a model's name, ready", name, INFER.replace("ModelInfer", "ModelReady"))


def _tensor(name: str, dtype: DType, count: int, data: bytes) -> Kind:
    message = pb.ModelInferRequest(model_name=dtype.name.lower(), raw_input_contents=[data])
    message.inputs.add(name="x", datatype=dtype.wire, shape=[count])
    return Kind(name, message.SerializeToString())


def _typed(name: str, dtype: DType, count: int, contents: pb.InferTensorContents | bytes) -> Kind:
    data = contents if isinstance(contents, bytes) else contents.SerializeToString()
    item = pb.ModelInferRequest.InferInputTensor(name="x", datatype=dtype.wire, shape=[count]).SerializeToString()
    item += b"\x2a" + encoded_length(len(data)) + data
    head = pb.ModelInferRequest(model_name=dtype.name.lower()).SerializeToString()
    return Kind(name, head + b"\x2a" + encoded_length(len(item)) + item, tensor=count * dtype.itemsize)


def _packed(field: int, data: bytes) -> bytes:
    """``data`` as the packed field of that number."""
    return bytes([field << 3 | 2]) + encoded_length(len(data)) + data


if __name__ == "__main__":
    sys.exit(main())
