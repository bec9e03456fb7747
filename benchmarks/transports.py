"""Compares ways to serve gRPC from Python, by echoes that do nothing else.

    python -m benchmarks.transports --rounds 5 --out build/bench

Each way is a server of its own process, and all answer the same closed loops of unary calls (benchmarks/lean_client.py)
in turn. CPU is the kernel's count for the server's process; ratios to grpc.aio are taken within a round.
docs/decisions/0024 says what was chosen. Prints medians with least and most, and writes transports.json.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.hot_path import _cpu

ROOT = Path(__file__).resolve().parents[1]
IN_FLIGHT = (1, 8, 32)
NBYTES = 128
WARM_UP = 0.3
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


# -- the ways ---------------------------------------------------------------------


def aio() -> None:
    """grpc.aio on uvloop: what inferd was until decision 24."""
    import uvloop

    from benchmarks import bare_echo

    uvloop.run(bare_echo.serve(NBYTES))


def threads() -> None:
    """grpc.server with a thread for each CPU."""
    import grpc

    _synchronous(grpc.unary_unary_rpc_method_handler(lambda raw, _: raw), os.cpu_count() or 1)


def not_blocking() -> None:
    """grpc.server with its experimental handlers, which get a callback for the response, on one thread."""
    import grpc

    def answer(raw: bytes, _: Any, send: Callable[[bytes | None], None]) -> None:
        send(raw)
        send(None)

    answer.experimental_non_blocking = True  # type: ignore[attr-defined]
    _synchronous(grpc.unary_stream_rpc_method_handler(answer), 1)


def _synchronous(handler: Any, count: int) -> None:
    import grpc

    from benchmarks.open_loop import METHOD

    service, _, name = METHOD[1:].partition("/")
    server = grpc.server(ThreadPoolExecutor(count), options=_UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def polling_thread() -> None:
    """A thread polls gRPC's queue and hands each event to an event loop."""
    import uvloop

    from inferd.transport import core
    from inferd.transport.call import OpenCalls, ServerCall

    async def serve() -> None:
        loop, queue, open_calls = asyncio.get_running_loop(), core.CompletionQueue(), OpenCalls()
        server = core.Server(_UNLIMITED, False)
        server.register_completion_queue(queue)
        print(server.add_http2_port(b"127.0.0.1:0"), flush=True)
        server.start(backup_queue=False)

        def arrived(event: Any) -> None:
            server.request_call(queue, queue, arrived)
            ServerCall(event, open_calls).receive(_echo)

        def poll() -> None:
            while True:
                event = queue.poll()
                loop.call_soon_threadsafe(event.tag, event)

        for _ in range(64):
            server.request_call(queue, queue, arrived)
        threading.Thread(target=poll, daemon=True).start()
        await asyncio.Event().wait()

    uvloop.run(serve())


def queue_loop() -> None:
    """inferd's transport: the queue is the event loop's selector."""
    from inferd.transport.event_loop import QueueEventLoop
    from inferd.transport.server import GrpcServer

    async def serve() -> None:
        server = GrpcServer(lambda call: call.receive(_echo), _UNLIMITED)
        print(server.listen("127.0.0.1:0"), flush=True)
        server.start()
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=QueueEventLoop) as runner:
        runner.run(serve())


def _echo(call: Any, raw: bytes | None) -> None:
    if raw is not None:
        call.respond(raw)


@dataclass(frozen=True, slots=True)
class Way:
    """A server, and whether gRPC's own threads do its input and output."""

    serve: Callable[[], None]
    own_threads: bool


WAYS = {
    "grpc.aio": Way(aio, own_threads=True),
    "grpc.aio, sockets on its poller": Way(aio, own_threads=False),
    "grpc.server, threads": Way(threads, own_threads=True),
    "grpc.server, non-blocking handlers": Way(not_blocking, own_threads=True),
    "a polling thread": Way(polling_thread, own_threads=True),
    "a polling thread, sockets on it": Way(polling_thread, own_threads=False),
    "the queue as selector": Way(queue_loop, own_threads=True),
    "the queue as selector, sockets on its thread": Way(queue_loop, own_threads=False),
}


# -- measuring --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """One way for some seconds: microseconds of CPU an answer, answers a second, the median latency in ms."""

    cpu: float
    rate: float
    p50: float


def main() -> int:
    """Measure, print, write; the exit status. With ``--serve`` be one of the servers instead."""
    options = _options()
    if options.serve:
        WAYS[options.serve].serve()
        return 0
    looks: dict[int, dict[str, list[Look]]] = {count: {way: [] for way in WAYS} for count in IN_FLIGHT}
    with ExitStack() as stack:
        message = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-"))) / "request"
        message.write_bytes(bytes(NBYTES))
        servers = {name: stack.enter_context(_served(name)) for name in WAYS}
        for number in range(options.rounds):
            for count in IN_FLIGHT:
                for name in list(WAYS) if number % 2 else list(reversed(WAYS)):
                    looks[count][name].append(_look(*servers[name], message, count, options.seconds))
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    _print(looks)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {count: {name: [asdict(look) for look in own] for name, own in of.items()} for count, of in looks.items()}
    (options.out / "transports.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transports", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each run")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    parser.add_argument("--serve", choices=WAYS, help="serve that way, until ended")
    return parser.parse_args()


@contextmanager
def _served(name: str) -> Iterator[tuple[str, int]]:
    """Where that server listens, and its process."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}"}
    environment["GRPC_EXPERIMENTS"] = "" if WAYS[name].own_threads else "-event_engine_listener"
    command = [sys.executable, "-m", "benchmarks.transports", "--serve", name]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{process.stdout.readline().strip()}", process.pid
        finally:
            process.kill()


def _look(target: str, pid: int, message: Path, in_flight: int, seconds: float) -> Look:
    command = [sys.executable, "-m", "benchmarks.lean_client", target, "--request", str(message)]
    command += ["--in-flight", str(in_flight), "--warm-up", str(WARM_UP), "--seconds", str(seconds)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}"}
    before = _cpu(pid)
    done = subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    used, heard = _cpu(pid) - before, json.loads(done.stdout)
    assert not heard["errors"], heard
    return Look(
        used / (heard["answers"] * (1 + WARM_UP / seconds)) * 1e6,
        heard["answers"] / heard["seconds"],
        heard["p50"] * 1e3,
    )


def _print(looks: dict[int, dict[str, list[Look]]]) -> None:
    print("| in flight | server | CPU us an answer | of grpc.aio's | answers/s | p50 ms |")
    print("|---|---|---|---|---|---|")
    for count, of in looks.items():
        for name, own in of.items():
            ratios = [look.cpu / aio.cpu for look, aio in zip(own, of["grpc.aio"], strict=True)]
            columns = zip(*((look.cpu, look.rate, look.p50) for look in own), strict=True)
            cpu, rate, p50 = (statistics.median(values) for values in columns)
            spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            print(f"| {count} | {name} | {cpu:.0f} | {spread} | {rate:.0f} | {p50:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
