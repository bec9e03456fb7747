"""Messages as tests compare them."""

from collections.abc import Sequence

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc import codec
from inferd.tensors import Tensor, TensorSpec


def encoded(
    model: str, version: str, request_id: str, specs: Sequence[TensorSpec], outputs: Sequence[Tensor]
) -> pb.ModelInferResponse:
    """The response as a client parses it."""
    return pb.ModelInferResponse.FromString(b"".join(codec.encode(model, version, request_id, specs, outputs)))
