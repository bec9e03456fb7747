"""The least that a gRPC server in Python costs that also runs a model: it takes and returns the bytes of a tensor.

    python -m benchmarks.computing_echo 2 squeezenet=model.xml resnet50=other.xml

Serves ModelInfer and ModelStreamInfer with `grpc.aio` on uvloop, on a free port of the loopback interface. Prints the
port and serves until it is ended. Models have one input and one output, both of static shape and the output FP32, and
run on as many streams of one thread each as the first argument says. Nothing is parsed, checked, limited or counted:
the last bytes of a message are the tensor, and a run that fails is never answered.
"""

import asyncio
import sys
from collections import deque
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.bare_echo import listen
from benchmarks.peers.runtime.infer_pool import properties
from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import keep_small_blocks, ov
from inferd.tensors import DType


class _Run:
    """An infer request, its tensors as bytes, and during a run the head and the future of the response."""

    __slots__ = ("answer", "head", "input", "output", "request")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.input = _bytes_of(request.get_input_tensor(0))
        self.output = _bytes_of(request.get_output_tensor(0))
        self.head = b""
        self.answer: asyncio.Future[bytes]


class Model:
    """The model in ``file``, compiled for ``threads`` streams of one thread, with two infer requests for each.

    ``unary_head`` and ``stream_head`` are the first bytes of its responses.
    """

    def __init__(self, name: str, file: str, threads: int) -> None:
        compiled = ov.Core().compile_model(file, "CPU", properties(threads))
        self.unary_head, self.stream_head = heads(name, compiled.outputs[0].any_name, list(compiled.outputs[0].shape))
        self._loop = asyncio.get_running_loop()
        self._idle = [_Run(compiled.create_infer_request()) for _ in range(2 * threads)]
        self._waiting: deque[tuple[bytes, bytes, asyncio.Future[bytes]]] = deque()
        for run in self._idle:
            run.request.set_callback(self._computed, run)

    def ask(self, message: bytes, head: bytes) -> asyncio.Future[bytes]:
        """``head``, then the output of the model for the tensor at the end of ``message``."""
        answer: asyncio.Future[bytes] = self._loop.create_future()
        if self._idle:
            self._start(self._idle.pop(), message, head, answer)
        else:
            self._waiting.append((message, head, answer))
        return answer

    def _start(self, run: _Run, message: bytes, head: bytes, answer: asyncio.Future[bytes]) -> None:
        run.input[:] = memoryview(message)[-len(run.input) :]
        run.head, run.answer = head, answer
        run.request.start_async()

    def _computed(self, run: _Run) -> None:
        """On a thread of OpenVINO's."""
        self._loop.call_soon_threadsafe(self._ended, run)

    def _ended(self, run: _Run) -> None:
        if not run.answer.done():  # the client may have gone
            run.answer.set_result(b"".join((run.head, run.output)))
        if self._waiting:
            self._start(run, *self._waiting.popleft())
        else:
            self._idle.append(run)


def heads(name: str, output: str, shape: list[int]) -> tuple[bytes, bytes]:
    """A ModelInferResponse and a ModelStreamInferResponse up to the bytes of their tensor, with which they end."""
    nbytes = int(np.prod(shape)) * DType.FP32.itemsize
    response = pb.ModelInferResponse(model_name=name, model_version="1", raw_output_contents=[bytes(nbytes)])
    response.outputs.add(name=output, datatype=DType.FP32.wire, shape=shape)
    streamed = pb.ModelStreamInferResponse(infer_response=response)
    return response.SerializeToString()[:-nbytes], streamed.SerializeToString()[:-nbytes]


def _bytes_of(tensor: Any) -> memoryview:
    return memoryview(tensor.data.reshape(-1).view(np.uint8))


async def serve(files: dict[str, str], threads: int) -> None:
    """Answer for the models in ``files``, by name; names are shorter than 128 bytes."""
    keep_small_blocks()
    models = {name.encode(): Model(name, file, threads) for name, file in files.items()}

    def asked(message: bytes) -> Model:
        # The model name comes first: a tag, the length in one byte, the name.
        return models[message[2 : 2 + message[1]]]

    async def unary(message: bytes, _: grpc.aio.ServicerContext) -> bytes:
        model = asked(message)
        return await model.ask(message, model.unary_head)

    async def stream(_: object, context: grpc.aio.ServicerContext) -> None:
        answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()

        async def write() -> None:
            while (answer := await answers.get()) is not None:
                await context.write(await answer)

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            while (message := await context.read()) is not grpc.aio.EOF:
                model = asked(message)
                answers.put_nowait(model.ask(message, model.stream_head))
            answers.put_nowait(None)

    await listen(unary, stream)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(dict(argument.split("=", 1) for argument in sys.argv[2:]), int(sys.argv[1])))
