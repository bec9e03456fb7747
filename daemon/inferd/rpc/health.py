"""grpc.health.v1: whether the server and each of its services is serving."""

import asyncio
from collections.abc import Mapping

import grpc

from inferd._pb import health_pb2

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

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service as a gRPC handler."""
        check = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": _Response.SerializeToString,
        }
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, **check),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **check),
            "List": grpc.unary_unary_rpc_method_handler(
                self._list,
                request_deserializer=health_pb2.HealthListRequest.FromString,
                response_serializer=health_pb2.HealthListResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _check(self, asked: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> _Response:
        if asked.service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return self._response(asked.service)

    async def _watch(self, asked: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        sent = None
        while True:
            changed = self._changed
            if (response := self._response(asked.service)) != sent:
                await context.write(response)
                sent = response
            await changed.wait()

    async def _list(
        self, _: health_pb2.HealthListRequest, __: grpc.aio.ServicerContext
    ) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={s: self._response(s) for s in self._serving})

    def _response(self, service: str) -> _Response:
        if (serving := self._serving.get(service)) is None:
            return _Response(status=_Response.SERVICE_UNKNOWN)
        return _Response(status=_Response.SERVING if serving else _Response.NOT_SERVING)
