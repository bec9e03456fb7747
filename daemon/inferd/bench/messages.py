"""Requests as sent, each serialised once before the run."""

from collections.abc import Sequence
from dataclasses import dataclass

from inferd._pb import open_inference_pb2 as pb
from inferd.bench.inputs import Feed


@dataclass(frozen=True, slots=True)
class ShmSlice:
    """Where a tensor is in shared memory: ``offset`` and ``nbytes`` in the region that the server calls ``region``."""

    region: str
    offset: int
    nbytes: int

    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.nbytes


def request(model: str, version: str, feeds: Sequence[Feed]) -> pb.ModelInferRequest:
    """A request that carries its inputs and asks for all outputs."""
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for feed in feeds:
        message.inputs.add(name=feed.name, datatype=feed.dtype.wire, shape=feed.shape)
        message.raw_input_contents.append(feed.data)
    return message


def shm_request(
    model: str, version: str, feeds: Sequence[Feed], inputs: Sequence[ShmSlice], outputs: Sequence[tuple[str, ShmSlice]]
) -> pb.ModelInferRequest:
    """A request whose inputs are at ``inputs`` and whose ``outputs``, by name, go to their places.

    The parameters are those of Triton's system shared memory extension.
    """
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for feed, place in zip(feeds, inputs, strict=True):
        _refer(message.inputs.add(name=feed.name, datatype=feed.dtype.wire, shape=feed.shape), place)
    for name, place in outputs:
        _refer(message.outputs.add(name=name), place)
    return message


def lay_out(region: str, sizes: Sequence[int], start: int = 0) -> list[ShmSlice]:
    """Places for tensors of ``sizes`` bytes one after another, each on a cache line of its own."""
    places, offset = [], start
    for size in sizes:
        places.append(ShmSlice(region, offset, size))
        offset = -(-(offset + size) // 64) * 64
    return places


def _refer(
    tensor: pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor, place: ShmSlice
) -> None:
    tensor.parameters["shared_memory_region"].string_param = place.region
    tensor.parameters["shared_memory_byte_size"].int64_param = place.nbytes
    if place.offset:
        tensor.parameters["shared_memory_offset"].int64_param = place.offset
