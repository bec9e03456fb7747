"""Serialised requests: each ends once, with the right code."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc import load_channels
from inferd.rpc.rpc_client import CallFailed
from inferd.security.client_credentials import NO_CREDENTIALS
from tests.bench.inference_server import serving
from tests.event_loop import on_loop, until

WAYS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
OK = grpc.StatusCode.OK


def start(channel: load_channels.LoadChannel, requests: Sequence[bytes], ended: list[tuple[bytes, str]]) -> None:
    for request in requests:
        channel.start(request, lambda code, request=request: ended.append((request, code)))


@WAYS
@on_loop
async def test_each_request_is_sent_unchanged_and_ends_once(stream: bool) -> None:
    seen: list[bytes] = []

    async def answer(request: bytes) -> grpc.StatusCode:
        seen.append(request)
        return OK

    sent = [b"\xffno message %d" % n for n in range(50)]
    ended: list[tuple[bytes, str]] = []
    async with (
        serving(answer) as address,
        load_channels.open_channels(address, 1, stream=stream, deadline=None, credentials=NO_CREDENTIALS) as (channel,),
    ):
        start(channel, sent, ended)
        await until(lambda: len(ended) == len(sent))
    assert sorted(seen) == sorted(sent)
    assert sorted(ended) == sorted((request, "OK") for request in sent)


@WAYS
@on_loop
async def test_a_refusal_has_its_code_and_ends_nothing_else(stream: bool) -> None:
    async def answer(request: bytes) -> grpc.StatusCode:
        return OK if request == b"good" else grpc.StatusCode.RESOURCE_EXHAUSTED

    ended: list[tuple[bytes, str]] = []
    async with (
        serving(answer) as address,
        load_channels.open_channels(address, 1, stream=stream, deadline=None, credentials=NO_CREDENTIALS) as (channel,),
    ):
        start(channel, [b"good", b"bad", b"good"], ended)
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
        load_channels.open_channels(address, 1, stream=True, deadline=None, credentials=NO_CREDENTIALS) as (channel,),
    ):
        start(channel, [b"1", b"2"], ended)
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
        load_channels.open_channels(address, 1, stream=True, deadline=None, credentials=NO_CREDENTIALS) as (channel,),
    ):
        start(channel, [b"bad", b"good"], ended)
        await until(lambda: len(ended) == 2)
        start(channel, [b"good"], ended)
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
        load_channels.open_channels(address, 1, stream=True, deadline=None, credentials=NO_CREDENTIALS) as (channel,),
    ):
        # Whether the writer or the reader learns first that the stream has ended differs from time to time.
        for _ in range(40):
            ended.clear()
            for request in (b"bad", *[large] * 10):
                channel.start(request, ended.append)
            await until(lambda: len(ended) == 11)
            assert "OK" not in ended
            channel.start(b"good", ended.append)
            await until(lambda: len(ended) == 12)
            assert ended[-1] == "OK"


@WAYS
@on_loop
async def test_requests_given_up_end_as_cancelled(stream: bool) -> None:
    arrived = asyncio.Event()

    async def never(_: bytes) -> grpc.StatusCode:
        arrived.set()
        await asyncio.Event().wait()
        return OK

    ended: list[tuple[bytes, str]] = []
    async with (
        serving(never) as address,
        load_channels.open_channels(address, 1, stream=stream, deadline=None, credentials=NO_CREDENTIALS) as (channel,),
    ):
        start(channel, [b"1", b"2"], ended)
        await arrived.wait()
        channel.give_up()
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
        load_channels.open_channels(address, 1, stream=False, deadline=0.01, credentials=NO_CREDENTIALS) as (channel,),
    ):
        start(channel, [b"1"], ended)
        await until(lambda: len(ended) == 1)
    assert ended == [(b"1", "DEADLINE_EXCEEDED")]


@on_loop
async def test_an_absent_server_gives_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_channels, "_CONNECT_TIMEOUT", 0.05)
    with pytest.raises(CallFailed, match=r"UNAVAILABLE: no connection to 127\.0\.0\.1:1 in 0\.05 s"):
        async with load_channels.open_channels(
            "127.0.0.1:1", 1, stream=False, deadline=None, credentials=NO_CREDENTIALS
        ):
            raise AssertionError("connected without a server")


def test_an_error_in_a_stream_may_come_without_a_code() -> None:
    # Triton's servers report no more than this.
    said = pb.ModelStreamInferResponse(error_message="[request id: 7] inference request failed").SerializeToString()
    assert load_channels._code_in_stream(said) == "UNKNOWN"
    assert load_channels._code_in_stream(pb.ModelStreamInferResponse().SerializeToString()) == "OK"
