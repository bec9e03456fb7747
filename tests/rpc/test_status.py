"""The error table: every error has a code, and every refusal for lack of capacity says when to retry."""

import inspect
import re

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from inferd import errors
from inferd.rpc import status
from inferd.transport.server import GrpcServer
from tests.event_loop import on_loop

ERRORS = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, errors.InferdError) and found is not errors.InferdError
]


def refusals(retry_after: float) -> list[errors.Refused]:
    """One error of each class; all say to retry after ``retry_after`` seconds."""
    return [
        errors.Refused("m", "no room", retry_after),
        errors.QueueFull("m", "1 request waiting", retry_after),
        errors.Evicted("m", retry_after),
        errors.SustainedOverload("m", 0.3, 0.25, retry_after=retry_after),
        errors.Overloaded("m", 0.3, 0.25, retry_after=retry_after),
        errors.Shed("m", 0.3, 0.25, retry_after=retry_after),
        errors.QuotaExceeded("m", "a", 4, retry_after=retry_after),
        errors.FailsTooOften("m", "a", retry_after),
        errors.TooManySequences("m", 3, retry_after),
        errors.MemoryFull(1 << 30, retry_after),
        errors.IncomingFull(1 << 28, retry_after),
    ]


def test_the_list_of_refusals_is_complete() -> None:
    assert {type(refusal) for refusal in refusals(1)} == {e for e in ERRORS if issubclass(e, errors.Refused)}


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_every_error_has_a_code(error: type[errors.InferdError]) -> None:
    assert status.CODES[error] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


TABLE: list[tuple[errors.InferdError, grpc.StatusCode]] = [
    (errors.UnknownModel("m"), grpc.StatusCode.NOT_FOUND),
    (errors.UnknownVersion("m", "9", [1]), grpc.StatusCode.NOT_FOUND),
    (errors.UnknownService("s"), grpc.StatusCode.NOT_FOUND),
    (errors.InvalidRequest("m", "x"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.ModelUnavailable("m", "loading"), grpc.StatusCode.UNAVAILABLE),
    (errors.Draining(), grpc.StatusCode.UNAVAILABLE),
    *((refusal, grpc.StatusCode.RESOURCE_EXHAUSTED) for refusal in refusals(0.5)),
    (errors.SequenceGone("m", 5, "is not known"), grpc.StatusCode.NOT_FOUND),
    (errors.SequenceLost("m", 5, "its stream ended"), grpc.StatusCode.ABORTED),
    (errors.UnknownRegion("x"), grpc.StatusCode.NOT_FOUND),
    (errors.RegionExists("x"), grpc.StatusCode.ALREADY_EXISTS),
    (errors.RegionLimit("4 regions"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlinePassed("m", "running", "running"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.MessageTimeout(120), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Cancelled("m"), grpc.StatusCode.CANCELLED),
    (errors.NotAllowed("that"), grpc.StatusCode.PERMISSION_DENIED),
    *((errors.NotAuthenticated(r), grpc.StatusCode.UNAUTHENTICATED) for r in errors.NotAuthenticated.SENTENCES),
    (errors.OutOfScope("that", "infer", "a"), grpc.StatusCode.PERMISSION_DENIED),
    (errors.NotSupported("that"), grpc.StatusCode.UNIMPLEMENTED),
    (errors.InferenceFailed("m", "x"), grpc.StatusCode.INTERNAL),
    (errors.InternalFault(), grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize(
    ("error", "code"),
    TABLE,
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
def test_errors_have_the_codes_that_clients_expect(error: errors.InferdError, code: grpc.StatusCode) -> None:
    assert status.code_of(error) is code


@pytest.mark.parametrize("kind", range(len(refusals(0))), ids=[type(refusal).__name__ for refusal in refusals(0)])
@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(0.0, 1), (0.0004, 1), (0.25, 250), (1.0, 1000), (61.0256, 61026)]
)
def test_a_refusal_says_when_to_retry_in_both_forms(kind: int, seconds: float, milliseconds: int) -> None:
    error = refusals(seconds)[kind]
    trailers = dict(status.trailers(error))
    assert trailers["grpc-retry-pushback-ms"] == str(milliseconds)

    rich = Status.FromString(trailers["grpc-status-details-bin"])
    assert (rich.code, rich.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], str(error))
    retry = RetryInfo()
    assert [detail.Unpack(retry) for detail in rich.details] == [True]
    assert retry.retry_delay.ToMilliseconds() == milliseconds


@pytest.mark.parametrize(
    "error",
    [
        errors.Draining(),
        errors.InternalFault(),
        errors.DeadlinePassed("m", "running", "running"),
        errors.SequenceGone("m", 5, "has ended"),
        errors.SequenceLost("m", 5, "its stream ended"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_other_error_invites_a_retry(error: errors.InferdError) -> None:
    assert status.trailers(error) == ()


@on_loop
async def test_a_call_that_fails_sends_code_sentence_and_trailers_over_the_wire() -> None:
    error = errors.QueueFull("m", "1 request waiting", 2.0)
    server = GrpcServer(lambda call: status.fail(call, error), [])
    port = server.listen("127.0.0.1:0")
    server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/test/Call")(b"")
    finally:
        await server.stop(0)
    seen = refused.value
    assert (seen.code(), seen.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    trailers = dict(seen.trailing_metadata())
    assert trailers["grpc-retry-pushback-ms"] == "2000"
    assert Status.FromString(trailers["grpc-status-details-bin"]).message == str(error)


def test_the_reason_of_an_error_is_a_label_and_never_a_clients_or_a_file_s_text() -> None:
    unavailable = errors.ModelUnavailable("m", "unavailable", "it has no outputs")
    reasons = [error.reason for error in (unavailable, *(error for error, _ in TABLE))]
    assert [reason for reason in reasons if not re.fullmatch("[a-z_]*", reason)] == []
