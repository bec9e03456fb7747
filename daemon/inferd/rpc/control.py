"""The RPCs that change what is served."""

from google.protobuf.message import Message

from inferd._pb import open_inference_pb2 as pb
from inferd.catalog.catalog import Catalog
from inferd.errors import InvalidRequest, one_line
from inferd.transport.call import ServerCall


class RepositoryControl:
    """Load and unload. Paths and files never come over the wire: only models on disk are loaded."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def load(self, request: pb.RepositoryModelLoadRequest, _: ServerCall) -> Message:
        for key in request.parameters:
            raise InvalidRequest(
                request.model_name,
                f"load parameter '{one_line(key, 80)}' is not accepted: the repository's files decide",
            )
        await self._catalog.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: pb.RepositoryModelUnloadRequest, _: ServerCall) -> Message:
        for key in request.parameters:
            if key != "unload_dependents":
                raise InvalidRequest(
                    request.model_name, f"unknown unload parameter '{one_line(key, 80)}'; allowed: unload_dependents"
                )
        await self._catalog.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()
