"""A real gRPC server on the running loop, for clients to be tested against: each request is answered as told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from inferd._pb import open_inference_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
Answer = Callable[[bytes], Awaitable[grpc.StatusCode]]
"""Takes a request's bytes; OK is answered with nothing in it, anything else is the call's end."""


@asynccontextmanager
async def serving(answer: Answer, *, breaks_streams: bool = False) -> AsyncIterator[str]:
    """A server of ModelInfer and ModelStreamInfer; its address.

    A stream is answered in order, errors as inferd tells them; with ``breaks_streams`` an error ends the stream.
    """

    async def unary(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        code = await answer(request)
        if code is not grpc.StatusCode.OK:
            await context.abort(code, "as told")
        return b""

    async def stream(_: object, context: grpc.aio.ServicerContext) -> None:
        answers: asyncio.Queue[asyncio.Task[grpc.StatusCode] | None] = asyncio.Queue()

        async def read() -> None:
            while (request := await context.read()) is not grpc.aio.EOF:
                answers.put_nowait(asyncio.ensure_future(answer(request)))
            answers.put_nowait(None)

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            while (task := await answers.get()) is not None:
                code = await task
                if code is not grpc.StatusCode.OK and breaks_streams:
                    reading.cancel()
                    await context.abort(code, "as told")
                error = "" if code is grpc.StatusCode.OK else f"[{code.name}] request '7': as told"
                response = pb.ModelStreamInferResponse(
                    error_message=error, infer_response=pb.ModelInferResponse(id="7")
                )
                await context.write(response.SerializeToString())

    methods = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(unary),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream),
    }
    running = grpc.aio.server()
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await running.stop(None)
