"""What a refused client learns in addition to the code: when to retry."""

import re

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode


async def pushback(call: grpc.aio.Call) -> int:
    """Milliseconds that the refused ``call`` is to wait, at least 1; its sentence and both trailers agree on them."""
    code, sentence, trailers = await call.code(), await call.details(), dict(await call.trailing_metadata())
    assert code is StatusCode.RESOURCE_EXHAUSTED, (code, sentence)
    status, retry = Status.FromString(trailers["grpc-status-details-bin"]), RetryInfo()
    assert (status.code, status.message) == (code.value[0], sentence)
    assert [detail.Unpack(retry) for detail in status.details] == [True]
    milliseconds = int(trailers["grpc-retry-pushback-ms"])
    said = re.search(r"; retry in (\d+) ms$", sentence)
    assert said is not None, sentence
    # A wait below half a millisecond is told in words as 0, and to machines as 1.
    assert retry.retry_delay.ToMilliseconds() == milliseconds == max(1, int(said[1])), sentence
    return milliseconds
