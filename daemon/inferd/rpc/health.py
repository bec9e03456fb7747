"""grpc.health.v1: whether the server and each of its services is serving."""

import asyncio
from collections.abc import Mapping

from inferd._pb import health_pb2
from inferd.errors import InvalidRequest, UnknownService
from inferd.rpc import codec
from inferd.rpc.call_tasks import CallTasks, Handler, read
from inferd.transport.call import ServerCall

SERVICE = "grpc.health.v1.Health"

_Response = health_pb2.HealthCheckResponse


class HealthService:
    """Whether each service is serving; the empty name is the server as a whole."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        # Set once, at the next change, which replaces it.
        self._changed = asyncio.Event()

    async def show(self, serving: Mapping[str, bool]) -> None:
        """Report to clients that ask or watch; services that are not named keep their status."""
        self._serving |= serving
        self._changed.set()
        self._changed = asyncio.Event()

    def handlers(self, tasks: CallTasks) -> dict[str, Handler]:
        """The RPCs of the service by their names, run by ``tasks``."""
        return {
            "Check": tasks.unary(self._check),
            "Watch": tasks.stream(self._watch),
            "List": tasks.unary(self._list),
        }

    async def _check(self, raw: bytes, _: ServerCall) -> bytes:
        asked = codec.parse(raw, health_pb2.HealthCheckRequest)
        if asked.service not in self._serving:
            raise UnknownService(asked.service)
        return self._response(asked.service).SerializeToString()

    async def _watch(self, call: ServerCall) -> None:
        if (raw := await read(call)) is None:
            raise InvalidRequest("", "the call ended without a message")
        asked = codec.parse(raw, health_pb2.HealthCheckRequest)
        sent = None
        while True:
            changed = self._changed
            if (response := self._response(asked.service)) != sent:
                await call.write(response.SerializeToString())
                sent = response
            await changed.wait()

    async def _list(self, _: bytes, __: ServerCall) -> bytes:
        statuses = {service: self._response(service) for service in self._serving}
        return health_pb2.HealthListResponse(statuses=statuses).SerializeToString()

    def _response(self, service: str) -> _Response:
        if (serving := self._serving.get(service)) is None:
            return _Response(status=_Response.SERVICE_UNKNOWN)
        return _Response(status=_Response.SERVING if serving else _Response.NOT_SERVING)
