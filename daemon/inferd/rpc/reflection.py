"""grpc.reflection.v1alpha: the services that a client may ask for, for tools such as grpcurl."""

from collections.abc import AsyncIterator, Iterable

from grpc_reflection.v1alpha import reflection, reflection_pb2

from inferd.rpc import codec
from inferd.rpc.call_tasks import CallTasks, Handler, read
from inferd.transport.call import ServerCall

SERVICE: str = reflection.SERVICE_NAME


def handlers(tasks: CallTasks, services: Iterable[str]) -> dict[str, Handler]:
    """The RPCs of the service by their names, run by ``tasks``; it tells of ``services`` and of itself."""
    servicer = reflection.aio.ReflectionServicer((*services, SERVICE))

    async def answer(call: ServerCall) -> None:
        async for response in servicer.ServerReflectionInfo(_asked(call), None):
            await call.write(response.SerializeToString())

    return {"ServerReflectionInfo": tasks.stream(answer)}


async def _asked(call: ServerCall) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    call.expect_many()
    while (raw := await read(call)) is not None:
        yield codec.parse(raw, reflection_pb2.ServerReflectionRequest)
