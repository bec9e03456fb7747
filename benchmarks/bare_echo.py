"""The least that a gRPC server in Python costs: it takes bytes, returns bytes of a given size, and parses nothing.

    python -m benchmarks.bare_echo 1024

Serves ModelInfer and ModelStreamInfer with `grpc.aio` on uvloop, as inferd does, on a free port of the loopback
interface. Prints the port and serves until it is ended.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import grpc
import uvloop

from benchmarks.open_loop import METHOD

_SERVICE, _, _UNARY = METHOD[1:].partition("/")


async def serve(nbytes: int) -> None:
    """Answer everything with ``nbytes`` zero bytes."""
    answer = bytes(nbytes)

    async def unary(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
        return answer

    async def stream(_: object, context: grpc.aio.ServicerContext) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(answer)

    await listen(unary, stream)


async def listen(
    unary: Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]],
    stream: Callable[[object, grpc.aio.ServicerContext], Awaitable[None]],
) -> None:
    """Print a free port of the loopback interface and serve the two RPCs on it until the process is ended."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    handlers = {
        _UNARY: grpc.unary_unary_rpc_method_handler(unary),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(int(sys.argv[1])))
