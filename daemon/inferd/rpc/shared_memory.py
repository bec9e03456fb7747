"""The RPCs that register shared memory, and which client may use it."""

from typing import Any

from google.protobuf.message import Message

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import NotAllowed, NotSupported
from inferd.rpc.peer import is_local
from inferd.rpc.shm_params import Locate
from inferd.security.credentials import Credentials
from inferd.shared_memory.regions import Span
from inferd.shared_memory.store import RegionStore
from inferd.tensors import Placed
from inferd.transport.call import ServerCall


class SharedMemory:
    """System shared memory, if there is a ``store``. Without one, and for CUDA's, clients such as perf_analyzer still
    ask for the status and unregister everything: both must succeed.

    ``credentials`` know which client owns which keys.
    """

    def __init__(self, store: RegionStore | None = None, credentials: Credentials | None = None) -> None:
        self._store = store
        self._credentials = credentials if credentials is not None else Credentials()

    async def system_status(self, request: pb.SystemSharedMemoryStatusRequest, call: ServerCall) -> Message:
        response = pb.SystemSharedMemoryStatusResponse()
        if self._store is not None:
            for region in self._store.regions(_local_owner(call), request.name):
                shown = response.regions[region.name]
                shown.name, shown.key = region.name, region.key
                shown.offset, shown.byte_size = region.offset, region.nbytes
        return response

    async def system_register(self, request: pb.SystemSharedMemoryRegisterRequest, call: ServerCall) -> Message:
        if self._store is None:
            raise NotSupported("system shared memory (the setting shared_memory is off)")
        owner, authority = _local_owner(call), self._credentials.authority
        prefixes = ("",) if authority is None else authority.keys_of(owner)
        self._store.register(owner, request.name, request.key, request.offset, request.byte_size, prefixes)
        return pb.SystemSharedMemoryRegisterResponse()

    async def system_unregister(self, request: pb.SystemSharedMemoryUnregisterRequest, call: ServerCall) -> Message:
        if self._store is not None:
            self._store.unregister(_local_owner(call), request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(self, *_: Any) -> Message:
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_register(self, *_: Any) -> Message:
        raise NotSupported("CUDA shared memory")

    async def cuda_unregister(self, *_: Any) -> Message:
        return pb.CudaSharedMemoryUnregisterResponse()


def locator(store: RegionStore, call: ServerCall) -> Locate:
    """Finds memory for the requests of ``call``, among its caller's regions."""
    return lambda span: store.locate(_local_owner(call), span)


def locate_all(store: RegionStore, call: ServerCall, spans: tuple[Span, ...]) -> tuple[Placed, ...]:
    """The memory of all ``spans`` of one request."""
    return store.locate_all(_local_owner(call), spans)


def _local_owner(call: ServerCall) -> str:
    """Raises NotAllowed for callers on other machines: they can't have made an object on this one."""
    if not is_local(call.peer()):
        raise NotAllowed("shared memory", "connect from this machine, over its loopback interface")
    return call.principal
