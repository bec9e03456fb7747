"""A minimal server with one event loop and one way to run a model: no parsing, no checks, no queue of its own.

    python -m benchmarks.choices_server uvloop async --steps 0

A request is the raw bytes of the input, a response those of the output; `none` is the echo of bare_echo.py. Every model
is compiled for as many streams of one thread each as the process may use CPUs, with as many infer requests. Listens on
a free port of the loopback interface, prints the port and the microseconds of a run alone, and serves until it is
ended.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import numpy as np
import uvloop
from tests import models

from benchmarks import bare_echo
from benchmarks.open_loop import METHOD
from inferd.engine.runtime import ov
from inferd.tensors import DType

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
SYNC = "sync"
ENGINES = ("none", "inline", "async", "threads")
ELEMENTS = 256
NBYTES = ELEMENTS * DType.FP32.itemsize

Answer = Callable[[bytes], Awaitable[bytes]]


class Slot:
    """An infer request, and the future of its run unless a thread waits for that itself."""

    def __init__(self, compiled: "ov.CompiledModel") -> None:
        self.request = compiled.create_infer_request()
        self._input = self.request.get_input_tensor(0).data.data.cast("B")
        self._output = self.request.get_output_tensor(0).data.data
        self.future: asyncio.Future[bytes] | None = None

    def write(self, raw: bytes) -> None:
        self._input[:] = raw

    def read(self) -> bytes:
        return bytes(self._output)

    def run(self, raw: bytes) -> bytes:
        """Compute on the calling thread."""
        self.write(raw)
        self.request.infer(share_outputs=True)
        return self.read()


class SlotPool:
    """Slots that threads take in turn."""

    def __init__(self, compiled: "ov.CompiledModel", count: int) -> None:
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for _ in range(count):
            self._free.put(Slot(compiled))

    def run(self, raw: bytes) -> bytes:
        slot = self._free.get()
        try:
            return slot.run(raw)
        finally:
            self._free.put(slot)


class HandedOver:
    """Slots that run on OpenVINO's threads, which wake the loop when they are done."""

    def __init__(self, compiled: "ov.CompiledModel", count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._free = [Slot(compiled) for _ in range(count)]
        for slot in self._free:
            slot.request.set_callback(self._done, slot)

    async def answer(self, raw: bytes) -> bytes:
        future = self._loop.create_future()
        if self._free:
            self._start(self._free.pop(), raw, future)
        else:
            self._waiting.append((raw, future))
        return await future

    def _start(self, slot: Slot, raw: bytes, future: "asyncio.Future[bytes]") -> None:
        slot.write(raw)
        slot.future = future
        slot.request.start_async()

    def _done(self, slot: Slot) -> None:
        self._loop.call_soon_threadsafe(self._end, slot)

    def _end(self, slot: Slot) -> None:
        future, answer = slot.future, slot.read()
        if self._waiting:
            self._start(slot, *self._waiting.popleft())
        else:
            self._free.append(slot)
        assert future is not None
        future.set_result(answer)


def model(steps: int) -> "ov.Model":
    """FP32 [ELEMENTS] -> the same shape: ``steps`` matrix products one after the other, or the input itself."""
    if not steps:
        return models.identity(DType.FP32, [ELEMENTS])
    op = ov.opset13
    x = op.parameter(ov.PartialShape([ELEMENTS]), ov.Type.f32)
    value, matrix = op.reshape(x, op.constant([1, ELEMENTS]), False), op.constant(np.eye(ELEMENTS, dtype=np.float32))
    for _ in range(steps):
        value = op.matmul(value, matrix, False, False)
    return ov.Model([op.result(op.reshape(value, op.constant([ELEMENTS]), False))], [x], "steps")


def answering(engine: str, compiled: "ov.CompiledModel", count: int) -> Answer:
    """The way in which a server on an event loop runs ``compiled``."""
    if engine == "async":
        return HandedOver(compiled, count).answer
    if engine == "threads":
        slots, pool = SlotPool(compiled, count), ThreadPoolExecutor(count)

        async def from_thread(raw: bytes) -> bytes:
            return await asyncio.get_running_loop().run_in_executor(pool, slots.run, raw)

        return from_thread
    slot = Slot(compiled)

    async def at_once(raw: bytes) -> bytes:
        return slot.run(raw)

    return at_once


def microseconds(compiled: "ov.CompiledModel") -> float:
    """The median of a run alone on the calling thread."""
    slot, raw, took = Slot(compiled), bytes(NBYTES), []
    for _ in range(500):
        at = time.perf_counter()
        slot.run(raw)
        took.append(time.perf_counter() - at)
    return statistics.median(took) * 1e6


def handlers(behaviour: object) -> grpc.GenericRpcHandler:
    service, _, name = METHOD[1:].partition("/")
    return grpc.method_handlers_generic_handler(service, {name: grpc.unary_unary_rpc_method_handler(behaviour)})


async def serve(engine: str, compiled: "ov.CompiledModel", count: int) -> None:
    """Serve with `grpc.aio` on the running loop until the process is ended."""
    answer = answering(engine, compiled, count)

    async def unary(raw: bytes, _: grpc.aio.ServicerContext) -> bytes:
        return await answer(raw)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers(unary),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, microseconds(compiled), flush=True)
    await server.wait_for_termination()


def serve_sync(compiled: "ov.CompiledModel | None", count: int, threads: int) -> None:
    """The same with a synchronous server of ``threads`` threads, each of which runs the model itself."""
    run, took = (SlotPool(compiled, count).run, microseconds(compiled)) if compiled is not None else (bytes, 0.0)
    server = grpc.server(ThreadPoolExecutor(threads))
    server.add_generic_rpc_handlers((handlers(lambda raw, _: run(raw)),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, took, flush=True)
    server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("server", choices=(*LOOPS, SYNC))
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--steps", type=int, default=0, help="of the model; 0 computes nothing")
    parser.add_argument("--switch-interval", type=float, default=sys.getswitchinterval(), help="seconds")
    count = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=count, help="of a synchronous server")
    given = parser.parse_args()
    sys.setswitchinterval(given.switch_interval)
    compiled = None
    if given.engine != "none":
        shared = {"NUM_STREAMS": count, "INFERENCE_NUM_THREADS": count}
        compiled = ov.Core().compile_model(model(given.steps), "CPU", shared)
    if given.server == SYNC:
        serve_sync(compiled, count, given.threads)
        return
    with asyncio.Runner(loop_factory=LOOPS[given.server]) as runner:
        runner.run(bare_echo.serve(NBYTES) if compiled is None else serve(given.engine, compiled, count))


if __name__ == "__main__":
    main()
