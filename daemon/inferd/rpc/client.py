"""A small synchronous client of the Open Inference Protocol, for inferd's own commands.

Tensors are numpy arrays and travel raw. Applications are better served by a full client
library such as tritonclient, which works with inferd unchanged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.rpc.rpc_client import RpcClient
from inferd.security.client_credentials import NO_CREDENTIALS, ClientCredentials
from inferd.tensors import BY_WIRE_NAME, Dim, DType, Signature, TensorSpec

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
# BF16 is opaque words here and BYTES has no fixed size: arrays represent neither.
_BY_NUMPY = {t.numpy: t for t in DType if t not in (DType.BF16, DType.BYTES)}


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """How a server describes itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


class InferenceClient:
    """Calls one server at ``target``, HOST:PORT. Connects on the first call; every call can raise CallFailed.

    ``timeout`` is in seconds and becomes each call's deadline.
    """

    def __init__(self, target: str, timeout: float = 30.0, credentials: ClientCredentials = NO_CREDENTIALS) -> None:
        self._rpc = RpcClient(target, _SERVICE, timeout=timeout, credentials=credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a call still running ends as CANCELLED."""
        self._rpc.close()

    def server_ready(self) -> bool:
        """Whether the server accepts requests now."""
        return bool(self._rpc.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready)

    def server_metadata(self) -> ServerInfo:
        """The server's name, version and protocol extensions."""
        answer = self._rpc.call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
        return ServerInfo(answer.name, answer.version, tuple(answer.extensions))

    def model_metadata(self, model: str, version: str = "") -> Signature:
        """The model's inputs and outputs as the server reports them; an empty ``version`` is the newest."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        answer = self._rpc.call("ModelMetadata", request, pb.ModelMetadataResponse)
        return Signature(tuple(map(_spec, answer.inputs)), tuple(map(_spec, answer.outputs)))

    def model_statistics(self, model: str, version: str = "") -> pb.ModelStatisticsResponse:
        """The model's counters; those of all its versions if ``version`` is empty."""
        answer: pb.ModelStatisticsResponse = self._rpc.call(
            "ModelStatistics", pb.ModelStatisticsRequest(name=model, version=version), pb.ModelStatisticsResponse
        )
        return answer

    def register_region(self, name: str, key: str, nbytes: int) -> None:
        """Let the server map the POSIX shared memory ``key``, under the name ``name``."""
        request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, byte_size=nbytes)
        self._rpc.call("SystemSharedMemoryRegister", request, pb.SystemSharedMemoryRegisterResponse)

    def unregister_region(self, name: str) -> None:
        """Remove the region's registration."""
        request = pb.SystemSharedMemoryUnregisterRequest(name=name)
        self._rpc.call("SystemSharedMemoryUnregister", request, pb.SystemSharedMemoryUnregisterResponse)

    def regions(self) -> tuple[str, ...]:
        """The names of the registered regions."""
        request = pb.SystemSharedMemoryStatusRequest()
        answer = self._rpc.call("SystemSharedMemoryStatus", request, pb.SystemSharedMemoryStatusResponse)
        return tuple(sorted(answer.regions))

    def ask(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """One inference, as messages of the protocol."""
        answer: pb.ModelInferResponse = self._rpc.call("ModelInfer", request, pb.ModelInferResponse)
        return answer

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        request_id: str = "",
    ) -> dict[str, npt.NDArray[Any]]:
        """One inference: arrays by output name, read-only; all outputs if none are named.

        Arrays keep their shape and element type. Raises InvalidRequest for an element
        type that has no fixed-size form on the wire.
        """
        request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
        for name, array in inputs.items():
            dtype = _BY_NUMPY.get(array.dtype.newbyteorder("="))
            if dtype is None:
                raise InvalidRequest(model, f"input '{name}' is an array of {array.dtype}, which can't be sent raw")
            request.inputs.add(name=name, datatype=dtype.wire, shape=array.shape)
            request.raw_input_contents.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        for name in outputs:
            request.outputs.add(name=name)
        answer = self._rpc.call("ModelInfer", request, pb.ModelInferResponse)
        return {
            tensor.name: _array(model, tensor, raw)
            for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }


def _array(model: str, tensor: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> npt.NDArray[Any]:
    dtype = BY_WIRE_NAME.get(tensor.datatype)
    if dtype is None or not dtype.itemsize:
        raise InvalidRequest(model, f"output '{tensor.name}' is {tensor.datatype}, which has no fixed size")
    return np.frombuffer(raw, dtype.numpy.newbyteorder("<")).reshape(tuple(tensor.shape))


def _spec(tensor: pb.ModelMetadataResponse.TensorMetadata) -> TensorSpec:
    dims = tuple(Dim(0, None) if n < 0 else Dim(n, n) for n in tensor.shape)
    return TensorSpec(tensor.name, BY_WIRE_NAME[tensor.datatype], dims)
