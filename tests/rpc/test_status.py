"""The error table: every error has a code, and a full queue says when to come back."""

import asyncio
import inspect

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from inferd import errors
from inferd.rpc import status

ERRORS = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, errors.InferdError) and found is not errors.InferdError
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_every_error_has_a_code(error: type[errors.InferdError]) -> None:
    assert status.CODES[error] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UnknownModel("m"), grpc.StatusCode.NOT_FOUND),
        (errors.UnknownVersion("m", "9", [1]), grpc.StatusCode.NOT_FOUND),
        (errors.InvalidRequest("m", "x"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.ModelUnavailable("m", "loading"), grpc.StatusCode.UNAVAILABLE),
        (errors.Draining(), grpc.StatusCode.UNAVAILABLE),
        (errors.QueueFull("m", "1 request waiting", 0.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.DeadlinePassed("m", "running"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.Cancelled("m"), grpc.StatusCode.CANCELLED),
        (errors.NotAllowed("that"), grpc.StatusCode.PERMISSION_DENIED),
        (errors.NotSupported("that"), grpc.StatusCode.UNIMPLEMENTED),
        (errors.InferenceFailed("m", "x"), grpc.StatusCode.INTERNAL),
        (errors.InternalFault(), grpc.StatusCode.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
def test_errors_travel_as_the_protocols_clients_expect(error: errors.InferdError, code: grpc.StatusCode) -> None:
    assert status.code_of(error) is code


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(0.0, 1), (0.0004, 1), (0.25, 250), (1.0, 1000), (61.0256, 61026)]
)
def test_a_full_queue_says_when_to_come_back_in_both_ways_clients_read(seconds: float, milliseconds: int) -> None:
    error = errors.QueueFull("m", "1 request waiting", seconds)
    trailers = dict(status.trailers(error))
    assert trailers["grpc-retry-pushback-ms"] == str(milliseconds)

    rich = Status.FromString(trailers["grpc-status-details-bin"])
    assert (rich.code, rich.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], str(error))
    retry = RetryInfo()
    assert [detail.Unpack(retry) for detail in rich.details] == [True]
    assert retry.retry_delay.ToMilliseconds() == milliseconds


def test_no_other_error_invites_a_retry() -> None:
    assert status.trailers(errors.Draining()) == ()
    assert status.trailers(errors.InternalFault()) == ()


def test_abort_sends_code_sentence_and_trailers_over_the_wire() -> None:
    error = errors.QueueFull("m", "1 request waiting", 2.0)

    async def refuse(_: bytes, context: grpc.aio.ServicerContext) -> None:
        await status.abort(context, error)

    async def call() -> grpc.aio.AioRpcError:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(refuse)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Call": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary("/test/Call")(b"")
                return refused.value
        finally:
            await server.stop(None)

    seen = asyncio.run(call())
    assert (seen.code(), seen.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    trailers = dict(seen.trailing_metadata())
    assert trailers["grpc-retry-pushback-ms"] == "2000"
    assert Status.FromString(trailers["grpc-status-details-bin"]).message == str(error)
