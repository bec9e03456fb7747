"""The error table: each error's gRPC code and trailing metadata."""

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from inferd import errors
from inferd.disclosure import client_message
from inferd.transport.call import ServerCall

_RETRY_INFO = f"type.googleapis.com/{RetryInfo.DESCRIPTOR.full_name}"
_REFUSALS = (
    errors.Refused,
    errors.QueueFull,
    errors.Evicted,
    errors.SustainedOverload,
    errors.Overloaded,
    errors.Shed,
    errors.QuotaExceeded,
    errors.FailsTooOften,
    errors.TooManySequences,
    errors.MemoryFull,
    errors.IncomingFull,
)

CODES: dict[type[errors.InferdError], grpc.StatusCode] = {
    errors.UnknownModel: grpc.StatusCode.NOT_FOUND,
    errors.UnknownService: grpc.StatusCode.NOT_FOUND,
    errors.UnknownVersion: grpc.StatusCode.NOT_FOUND,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ResponseTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.LoadFailed: grpc.StatusCode.UNAVAILABLE,
    errors.LoadInterrupted: grpc.StatusCode.UNAVAILABLE,
    errors.ContentChanged: grpc.StatusCode.UNAVAILABLE,
    errors.DeviceAbsent: grpc.StatusCode.UNAVAILABLE,
    errors.ConfigurationError: grpc.StatusCode.UNAVAILABLE,
    errors.RepositoryError: grpc.StatusCode.UNAVAILABLE,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    **dict.fromkeys(_REFUSALS, grpc.StatusCode.RESOURCE_EXHAUSTED),
    errors.SequenceGone: grpc.StatusCode.NOT_FOUND,
    errors.SequenceLost: grpc.StatusCode.ABORTED,
    errors.UnknownRegion: grpc.StatusCode.NOT_FOUND,
    errors.RegionExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.RegionLimit: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RolloutRejected: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.NotReceived: grpc.StatusCode.CANCELLED,
    errors.MessageTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.OutOfScope: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotSupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.InferenceFailed: grpc.StatusCode.INTERNAL,
    errors.InternalFault: grpc.StatusCode.INTERNAL,
}


def code_of(error: errors.InferdError) -> grpc.StatusCode:
    """The code of ``error``; a test asserts that the table has every class."""
    return CODES[type(error)]


def trailers(error: errors.InferdError) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata: when to retry, for clients with automatic retries and for those that read RetryInfo."""
    if not isinstance(error, errors.Refused):
        return ()
    milliseconds = max(1, round(error.retry_after * 1000))
    delay = RetryInfo(retry_delay=Duration(nanos=milliseconds % 1000 * 1_000_000, seconds=milliseconds // 1000))
    status = Status(code=code_of(error).value[0], message=client_message(error))
    # As Any.Pack does, which is slow: refusals have to be cheap.
    status.details.add(type_url=_RETRY_INFO, value=delay.SerializeToString())
    return (("grpc-retry-pushback-ms", str(milliseconds)), ("grpc-status-details-bin", status.SerializeToString()))


def fail(call: ServerCall, error: errors.InferdError) -> None:
    """End ``call`` with ``error``."""
    call.fail(code_of(error).value[0], client_message(error), trailers(error))
