"""Requests that are bytes already: that each ends once, and as what."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc import traffic
from inferd.rpc.caller import CallFailed
from inferd.security.shown import NOTHING
from tests.bench.inference_server import serving
from tests.event_loop import on_loop, until

WAYS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
OK = grpc.StatusCode.OK


def start(line: traffic.Line, requests: Sequence[bytes], ended: list[tuple[bytes, str]]) -> None:
    for request in requests:
        line.start(request, lambda code, request=request: ended.append((request, code)))


@WAYS
@on_loop
async def test_each_request_goes_out_as_it_is_and_ends_once(stream: bool) -> None:
    seen: list[bytes] = []

    async def answer(request: bytes) -> grpc.StatusCode:
        seen.append(request)
        return OK

    sent = [b"\xffno message %d" % n for n in range(50)]
    ended: list[tuple[bytes, str]] = []
    async with (
        serving(answer) as address,
        traffic.lines(address, 1, stream=stream, deadline=None, shown=NOTHING) as (line,),
    ):
        start(line, sent, ended)
        await until(lambda: len(ended) == len(sent))
    assert sorted(seen) == sorted(sent)
    assert sorted(ended) == sorted((request, "OK") for request in sent)


@WAYS
@on_loop
async def test_a_refusal_is_told_by_its_code_and_ends_nothing_else(stream: bool) -> None:
    async def answer(request: bytes) -> grpc.StatusCode:
        return OK if request == b"good" else grpc.StatusCode.RESOURCE_EXHAUSTED

    ended: list[tuple[bytes, str]] = []
    async with (
        serving(answer) as address,
        traffic.lines(address, 1, stream=stream, deadline=None, shown=NOTHING) as (line,),
    ):
        start(line, [b"good", b"bad", b"good"], ended)
        await until(lambda: len(ended) == 3)
    assert sorted(ended) == [(b"bad", "RESOURCE_EXHAUSTED"), (b"good", "OK"), (b"good", "OK")]


@on_loop
async def test_answers_of_a_stream_belong_to_their_requests_in_order() -> None:
    ended: list[tuple[bytes, str]] = []

    async def answer(request: bytes) -> grpc.StatusCode:
        # The first is ready last.
        for _ in range(0 if request == b"2" else 10):
            await asyncio.sleep(0)
        return grpc.StatusCode.INTERNAL if request == b"1" else OK

    async with (
        serving(answer) as address,
        traffic.lines(address, 1, stream=True, deadline=None, shown=NOTHING) as (line,),
    ):
        start(line, [b"1", b"2"], ended)
        await until(lambda: len(ended) == 2)
    assert ended == [(b"1", "INTERNAL"), (b"2", "OK")]


@on_loop
async def test_a_broken_stream_ends_what_it_held_and_is_replaced() -> None:
    arrived = asyncio.Event()

    async def answer(request: bytes) -> grpc.StatusCode:
        if request == b"good":
            arrived.set()
            return OK
        # A request that is still being written when the stream breaks ends as INTERNAL in grpc.aio.
        await arrived.wait()
        return grpc.StatusCode.DATA_LOSS

    ended: list[tuple[bytes, str]] = []
    async with (
        serving(answer, breaks_streams=True) as address,
        traffic.lines(address, 1, stream=True, deadline=None, shown=NOTHING) as (line,),
    ):
        start(line, [b"bad", b"good"], ended)
        await until(lambda: len(ended) == 2)
        start(line, [b"good"], ended)
        await until(lambda: len(ended) == 3)
    assert ended == [(b"bad", "DATA_LOSS"), (b"good", "DATA_LOSS"), (b"good", "OK")]


@on_loop
async def test_a_stream_that_breaks_while_requests_are_being_written_is_replaced() -> None:
    async def answer(request: bytes) -> grpc.StatusCode:
        return grpc.StatusCode.DATA_LOSS if request == b"bad" else OK

    large = bytes(1_000_000)
    ended: list[str] = []
    async with (
        serving(answer, breaks_streams=True) as address,
        traffic.lines(address, 1, stream=True, deadline=None, shown=NOTHING) as (line,),
    ):
        # Whether the writer or the reader learns first that the stream has ended differs from time to time.
        for _ in range(40):
            ended.clear()
            for request in (b"bad", *[large] * 10):
                line.start(request, ended.append)
            await until(lambda: len(ended) == 11)
            assert "OK" not in ended
            line.start(b"good", ended.append)
            await until(lambda: len(ended) == 12)
            assert ended[-1] == "OK"


@WAYS
@on_loop
async def test_what_is_given_up_ends_as_cancelled(stream: bool) -> None:
    arrived = asyncio.Event()

    async def never(_: bytes) -> grpc.StatusCode:
        arrived.set()
        await asyncio.Event().wait()
        return OK

    ended: list[tuple[bytes, str]] = []
    async with (
        serving(never) as address,
        traffic.lines(address, 1, stream=stream, deadline=None, shown=NOTHING) as (line,),
    ):
        start(line, [b"1", b"2"], ended)
        await arrived.wait()
        line.give_up()
        await until(lambda: len(ended) == 2)
    assert [code for _, code in ended] == ["CANCELLED", "CANCELLED"]


@on_loop
async def test_a_deadline_is_each_calls() -> None:
    async def never(_: bytes) -> grpc.StatusCode:
        await asyncio.Event().wait()
        return OK

    ended: list[tuple[bytes, str]] = []
    async with (
        serving(never) as address,
        traffic.lines(address, 1, stream=False, deadline=0.01, shown=NOTHING) as (line,),
    ):
        start(line, [b"1"], ended)
        await until(lambda: len(ended) == 1)
    assert ended == [(b"1", "DEADLINE_EXCEEDED")]


@on_loop
async def test_a_server_that_is_not_there_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "_CONNECT_TIMEOUT", 0.05)
    with pytest.raises(CallFailed, match=r"UNAVAILABLE: no connection to 127\.0\.0\.1:1 in 0\.05 s"):
        async with traffic.lines("127.0.0.1:1", 1, stream=False, deadline=None, shown=NOTHING):
            raise AssertionError("connected to nobody")


def test_an_error_in_a_stream_may_come_without_a_code() -> None:
    # Triton's servers say no more than this.
    said = pb.ModelStreamInferResponse(error_message="[request id: 7] inference request failed").SerializeToString()
    assert traffic._code_in_stream(said) == "UNKNOWN"
    assert traffic._code_in_stream(pb.ModelStreamInferResponse().SerializeToString()) == "OK"
