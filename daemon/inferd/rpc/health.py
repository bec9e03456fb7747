"""grpc.health.v1, with the List that the library's servicer leaves out."""

from collections.abc import Mapping

import grpc
from grpc_health.v1 import health, health_pb2

_Status = health_pb2.HealthCheckResponse.ServingStatus


class HealthService(health.aio.HealthServicer):  # type: ignore[misc]  # grpc ships no types
    """Whether each service answers; the empty name is the server as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self._serving: dict[str, bool] = {}

    async def show(self, serving: Mapping[str, bool]) -> None:
        """Tell the clients that ask or watch; services that are not named keep what they had."""
        self._serving |= serving
        for service, is_serving in serving.items():
            await self.set(service, _status(is_serving))

    async def List(  # noqa: N802 - the RPC's name
        self, _: health_pb2.HealthListRequest, __: grpc.aio.ServicerContext
    ) -> health_pb2.HealthListResponse:
        """Every service with its status."""
        statuses = {s: health_pb2.HealthCheckResponse(status=_status(up)) for s, up in self._serving.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


def _status(serving: bool) -> int:
    return int(_Status.SERVING if serving else _Status.NOT_SERVING)
