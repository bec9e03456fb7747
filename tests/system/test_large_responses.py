"""A response of more bytes than it may have is refused, and its memory comes back; so does that of many shapes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from inferd._pb import open_inference_pb2 as pb
from tests import models
from tests.engine import models as small
from tests.system.daemon import Daemon
from tests.system.memory import Growth
from tests.system.wire import request

pytestmark = pytest.mark.system

INFER, STREAM = (f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer"))
LIMIT, HUGE = 8 << 20, 800 << 20
SHAPES = 600


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = tmp_path_factory.mktemp("models")
    models.save(repeated(), repository, "huge")
    models.save(words(), repository, "words")
    models.save(convolutions(), repository, "kept")
    with Daemon(repository, "--cache-dir", str(cache_dir), "--max-response-bytes", str(LIMIT)) as started:
        yield started


def repeated() -> "small.ov.Model":
    """Repeats a number as often as ``to`` says."""
    x, to = small.parameter([1]), small.parameter([1], small.ov.Type.i64, "to")
    return small.model({"y": small.op.broadcast(x, to)}, [x, to])


def words() -> "small.ov.Model":
    """Repeats a string as often as ``to`` says."""
    x, to = small.parameter([1], small.ov.Type.string), small.parameter([1], small.ov.Type.i64, "to")
    rows = small.op.broadcast(small.op.constant(np.int64(0)), to)
    return small.model({"y": small.op.gather(x, rows, small.op.constant(0))}, [x, to])


def convolutions() -> "small.ov.Model":
    """Six of them, over pictures of any size."""
    hidden = x = small.parameter([1, 3, -1, -1])
    numbers = np.random.default_rng(0)
    for channels in (3, *[16] * 5):
        kernel = small.op.constant(numbers.standard_normal((16, channels, 3, 3), np.float32) / 10)
        hidden = small.op.relu(small.op.convolution(hidden, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
    return small.model({"y": hidden}, [x])


def asking(nbytes: int) -> pb.ModelInferRequest:
    """A request for a response of so many bytes, and those of the message around them."""
    return request("huge", {"x": np.ones(1, np.float32), "to": np.array([nbytes // 4], np.int64)})


def channel(daemon: Daemon) -> grpc.Channel:
    return grpc.insecure_channel(daemon.grpc, [("grpc.max_receive_message_length", -1)])


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(error.value.details())


def test_a_huge_response_is_refused_and_its_memory_comes_back(daemon: Daemon, figure: Callable[[str], None]) -> None:
    with channel(daemon) as connection:
        infer = connection.unary_unary(INFER, pb.ModelInferRequest.SerializeToString)
        infer(asking(4))
        growth = Growth(daemon.process.pid)
        assert refused(lambda: infer(asking(HUGE))) == (
            f"the response has {HUGE} bytes; at most {LIMIT} are allowed (max_response_bytes)"
        )
        peak = growth.peak
        assert peak > 500 << 20
        # Each stream of the model returns it in a run of its own.
        for _ in range(32):
            infer(asking(4))
        assert growth.now < 100 << 20
        figure(f"a response of {HUGE >> 20} MiB: +{peak >> 20} MiB, then +{growth.now >> 20} MiB")


def test_a_response_may_have_as_many_bytes_as_the_limit_says(daemon: Daemon) -> None:
    with channel(daemon) as connection:
        infer = connection.unary_unary(INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
        # The tensor is as large, and then there is the rest of the message.
        assert "max_response_bytes" in refused(lambda: infer(asking(LIMIT)))
        assert len(infer(asking(LIMIT - 200)).raw_output_contents[0]) == LIMIT - 200


def test_in_a_stream_the_request_fails_and_the_others_are_answered(daemon: Daemon) -> None:
    with channel(daemon) as connection:
        stream = connection.stream_stream(
            STREAM, pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString
        )
        answers = list(stream(iter([asking(4), asking(LIMIT + 4), asking(8)]), timeout=60))
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert "(max_response_bytes)" in answers[1].error_message


def test_strings_by_the_million_are_not_made(daemon: Daemon) -> None:
    message = pb.ModelInferRequest(model_name="words")
    message.inputs.add(name="x", datatype="BYTES", shape=[1])
    message.inputs.add(name="to", datatype="INT64", shape=[1])
    message.raw_input_contents.extend([b"\x01\0\0\0a", (1_000_000).to_bytes(8, "little")])
    with channel(daemon) as connection:
        infer = connection.unary_unary(INFER, pb.ModelInferRequest.SerializeToString)
        assert "(max_response_bytes)" in refused(lambda: infer(message))


def test_what_is_prepared_for_shapes_is_bounded(daemon: Daemon, figure: Callable[[str], None]) -> None:
    grown = []
    growth = Growth(daemon.process.pid)
    with channel(daemon) as connection:
        infer = connection.unary_unary(INFER, pb.ModelInferRequest.SerializeToString)
        for n in range(2 * SHAPES):
            infer(request("kept", {"x": np.zeros((1, 3, 8 + n % 30, 8 + n // 30), np.float32)}))
            if n % SHAPES == SHAPES - 1:
                grown.append(growth.now)
    first, both = grown
    figure(f"six convolutions: +{first >> 20} MiB after {SHAPES} shapes, +{both >> 20} MiB after {2 * SHAPES}")
    assert both < 1.7 * first
