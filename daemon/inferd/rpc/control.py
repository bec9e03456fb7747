"""The RPCs that change what is served, and those of extensions this server does not have."""

from typing import Any

import grpc
from google.protobuf.message import Message

from inferd._pb import open_inference_pb2 as pb
from inferd.catalog import Catalog
from inferd.errors import InvalidRequest, NotSupported, one_line


class RepositoryControl:
    """Load and unload. Paths and files never come over the wire: only what is on disk is loaded."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def load(self, asked: pb.RepositoryModelLoadRequest, _: grpc.aio.ServicerContext) -> Message:
        for key in asked.parameters:
            raise InvalidRequest(
                asked.model_name,
                f"load parameter '{one_line(key, 80)}' is not accepted: the repository's files decide",
            )
        await self._catalog.load(asked.model_name)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, asked: pb.RepositoryModelUnloadRequest, _: grpc.aio.ServicerContext) -> Message:
        for key in asked.parameters:
            if key != "unload_dependents":
                raise InvalidRequest(
                    asked.model_name, f"unknown unload parameter '{one_line(key, 80)}'; allowed: unload_dependents"
                )
        await self._catalog.unload(asked.model_name)
        return pb.RepositoryModelUnloadResponse()


class SharedMemory:
    """Clients such as perf_analyzer ask for the status and unregister whatever there is: both must succeed."""

    async def system_status(self, *_: Any) -> Message:
        return pb.SystemSharedMemoryStatusResponse()

    async def system_register(self, *_: Any) -> Message:
        raise NotSupported("system shared memory")

    async def system_unregister(self, *_: Any) -> Message:
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(self, *_: Any) -> Message:
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_register(self, *_: Any) -> Message:
        raise NotSupported("CUDA shared memory")

    async def cuda_unregister(self, *_: Any) -> Message:
        return pb.CudaSharedMemoryUnregisterResponse()
