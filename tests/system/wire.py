"""The protocol as the system tests speak it: grpc and the generated messages, no client library."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from prometheus_client.parser import text_string_to_metric_families

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests.system.daemon import Daemon
from tests.system.echo_models import QUEUE_LENGTH, SLOTS

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
OK = grpc.StatusCode.OK

# A connection of its own for each channel: grpc shares them between channels of one target otherwise.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
_WIRE_NAMES = {t.numpy: t.wire for t in DType if t not in (DType.BF16, DType.BYTES)}

Counts = dict[tuple[str, str], int]


def connect(target: str, tls: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """A channel of its own connection to ``target``; in the clear without ``tls``."""
    if tls is not None:
        return grpc.aio.secure_channel(target, tls, options=_OPTIONS)
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


def method(channel: grpc.aio.Channel, name: str) -> Any:
    """The callable of a method of the service; a unary one takes its message or any bytes in its place."""
    described = SERVICE.methods_by_name[name]
    kind = channel.stream_stream if described.client_streaming else channel.unary_unary
    return kind(
        f"/{SERVICE.full_name}/{name}",
        request_serializer=_serialized,
        response_deserializer=GetMessageClass(described.output_type).FromString,
    )


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def request(
    model: str,
    inputs: Mapping[str, npt.NDArray[Any]],
    request_id: str = "",
    parameters: Mapping[str, int | bool | str] | None = None,
    version: str = "",
) -> pb.ModelInferRequest:
    """An inference asked for with raw contents."""
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=_WIRE_NAMES[array.dtype], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    for key, value in (parameters or {}).items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[key], kind, value)
    return message


def echo(words: Sequence[int], request_id: str = "", **more: Any) -> pb.ModelInferRequest:
    """A request to the model ``echo``, whose answer carries ``words`` back."""
    return request("echo", {"x": np.array(words, np.int64)}, request_id, **more)


def steps(count: int, request_id: str = "", *, model: str = "steps", **more: Any) -> pb.ModelInferRequest:
    """A request that keeps its infer request busy for ``count`` steps."""
    return request(model, {"steps": np.array(count, np.int32)}, request_id, **more)


async def all_slots_usable(infer: Any, attempts: int = 30) -> bool:
    """Whether the model `slots` still has all its infer requests.

    As many requests at once as can run and wait together are all answered only if no slot
    is lost. Runs that were given up may still hold some for a while, hence the attempts.
    """
    for _ in range(attempts):
        calls = [infer(steps(300, model="slots")) for _ in range(SLOTS + QUEUE_LENGTH)]
        if all([await call.code() is OK for call in calls]):
            return True
    return False


async def outcome(call: grpc.aio.Call) -> tuple[grpc.StatusCode, str]:
    """How a call ended: its code and the sentence that came with it; waits for its end."""
    return await call.code(), await call.details() or ""


def counts(daemon: Daemon) -> Counts:
    """Requests answered so far by model and outcome, as the metrics say.

    A request is answered first and counted next, both in one turn of the daemon's loop: a call answered after it finds
    it counted.
    """
    with grpc.insecure_channel(daemon.grpc, options=_OPTIONS) as channel:
        live = channel.unary_unary(f"/{SERVICE.full_name}/ServerLive", response_deserializer=bytes)
        live(b"", timeout=10, wait_for_ready=True)
    _, body = daemon.get("/metrics")
    found: Counts = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            if sample.name == "inferd_requests_total":
                key = sample.labels["model"], sample.labels["outcome"]
                found[key] = found.get(key, 0) + int(sample.value)
    return found


def by_outcome(counted: Counts) -> dict[str, int]:
    """``counted`` summed over the models."""
    summed: dict[str, int] = {}
    for (_, outcome), count in counted.items():
        summed[outcome] = summed.get(outcome, 0) + count
    return summed
