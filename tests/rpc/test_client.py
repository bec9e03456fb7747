from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.rpc.client import InferenceClient
from inferd.rpc.rpc_client import CallFailed
from inferd.tensors import DType

Call = grpc.ServicerContext


def infer(request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
    """The named model's response: `echo` returns each input requested, `large` 8 MiB, `text` a string."""
    answer = pb.ModelInferResponse(model_name=request.model_name)
    match request.model_name:
        case "echo":
            wanted = {output.name for output in request.outputs}
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
                if not wanted or tensor.name in wanted:
                    answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
                    answer.raw_output_contents.append(raw)
        case "large":
            answer.outputs.add(name="y", datatype="FP64", shape=[1 << 20])
            answer.raw_output_contents.append(bytes(8 << 20))
        case "text":
            answer.outputs.add(name="y", datatype="BYTES", shape=[1])
            answer.raw_output_contents.append(b"\1\0\0\0a")
        case unknown:
            call.abort(grpc.StatusCode.NOT_FOUND, f"unknown model '{unknown}'")
    return answer


def metadata(request: pb.ModelMetadataRequest, _call: Call) -> pb.ModelMetadataResponse:
    answer = pb.ModelMetadataResponse(name=request.name)
    answer.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
    answer.outputs.add(name="y", datatype="INT64", shape=[2])
    return answer


def unary(method: Callable[..., object], request: type) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=request.FromString, response_serializer=lambda answer: answer.SerializeToString()
    )


@pytest.fixture
def client() -> Iterator[InferenceClient]:
    """A client of a real server that responds as above."""
    handlers = {
        "ServerReady": unary(lambda *_: pb.ServerReadyResponse(ready=True), pb.ServerReadyRequest),
        "ServerMetadata": unary(
            lambda *_: pb.ServerMetadataResponse(name="s", version="1", extensions=["statistics"]),
            pb.ServerMetadataRequest,
        ),
        "ModelMetadata": unary(metadata, pb.ModelMetadataRequest),
        "ModelInfer": unary(infer, pb.ModelInferRequest),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with InferenceClient(f"127.0.0.1:{port}") as client:
        yield client
    server.stop(0).wait()


@pytest.mark.parametrize("dtype", [t for t in DType if t not in (DType.BF16, DType.BYTES)], ids=lambda t: t.wire)
def test_arrays_of_every_fixed_size_type_survive_the_round_trip(client: InferenceClient, dtype: DType) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype.numpy)

    back = client.infer("echo", {"x": array})["x"]

    assert back.dtype == dtype.numpy
    np.testing.assert_array_equal(back, array)


def test_arrays_of_another_memory_layout_keep_their_values(client: InferenceClient) -> None:
    transposed, big_endian = np.arange(6, dtype=np.int32).reshape(2, 3).T, np.array([1, 256], ">i4")

    back = client.infer("echo", {"a": transposed, "b": big_endian})

    np.testing.assert_array_equal(back["a"], transposed)
    np.testing.assert_array_equal(back["b"], big_endian)


def test_only_the_requested_outputs_come_back(client: InferenceClient) -> None:
    one = np.ones(1, np.float32)

    assert list(client.infer("echo", {"a": one, "b": one}, ["b"])) == ["b"]


def test_a_response_above_grpcs_default_limit_arrives(client: InferenceClient) -> None:
    assert client.infer("large", {})["y"].nbytes == 8 << 20


def test_a_refused_call_raises_with_the_servers_code_and_message(client: InferenceClient) -> None:
    with pytest.raises(CallFailed, match="unknown model 'nope'") as caught:
        client.infer("nope", {"x": np.ones(1, np.float32)})

    assert caught.value.code == "NOT_FOUND"


def test_strings_are_refused_in_both_directions(client: InferenceClient) -> None:
    with pytest.raises(InvalidRequest, match="input 'x' is an array of object"):
        client.infer("echo", {"x": np.array(["a"], object)})
    with pytest.raises(InvalidRequest, match="output 'y' is BYTES"):
        client.infer("text", {})


def test_metadata_becomes_a_signature(client: InferenceClient) -> None:
    signature = client.model_metadata("echo")

    assert [(t.name, t.dtype, t.wire_shape) for t in signature.inputs] == [("x", DType.FP32, [-1, 3])]
    assert [(t.name, t.dtype, t.wire_shape) for t in signature.outputs] == [("y", DType.INT64, [2])]


def test_a_server_describes_itself(client: InferenceClient) -> None:
    assert client.server_ready()
    info = client.server_metadata()
    assert (info.name, info.version, info.extensions) == ("s", "1", ("statistics",))
