"""The listening port: its services, and what a caller sees before, during and after serving."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from inferd._pb import health_pb2
from inferd._pb import open_inference_pb2 as pb
from inferd.errors import ConfigurationError
from inferd.lifecycle import Phase
from inferd.rpc.gate import SERVICE
from tests.event_loop import run, until
from tests.rpc.parts import Parts

METHODS = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
UNARY = [m for m in METHODS if not m.client_streaming]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def serving(
    root: Path, log_settings: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[Parts, grpc.aio.Channel]]:
    parts = Parts(root, log_settings or {})
    port = parts.server.bind("127.0.0.1:0")
    await parts.server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield parts, channel
    finally:
        await parts.server.stop(0)


async def outcome(channel: grpc.aio.Channel, method: str, message: bytes) -> tuple[grpc.StatusCode, str]:
    call = channel.unary_unary(f"/{SERVICE}/{method}")(message)
    return await call.code(), await call.details() or ""


def test_every_unary_rpc_of_the_service_has_a_handler(tmp_path: Path) -> None:
    async def ask() -> dict[str, grpc.StatusCode]:
        async with serving(tmp_path) as (_, channel):
            return {m.name: (await outcome(channel, m.name, b""))[0] for m in UNARY}

    codes = run(ask())
    # These two are part of the protocol, and refused with a sentence by inferd.
    refused = {"SystemSharedMemoryRegister", "CudaSharedMemoryRegister"}
    assert {name for name, code in codes.items() if code is grpc.StatusCode.UNIMPLEMENTED} == refused
    assert len(codes) == len(METHODS) - 1


def test_malformed_bytes_are_an_invalid_argument_to_every_unary_rpc_that_reads_its_message(tmp_path: Path) -> None:
    read = [m for m in UNARY if m.input_type.fields]
    assert {m.name for m in UNARY} - {m.name for m in read} == {"ServerLive", "ServerReady", "ServerMetadata"}

    async def ask() -> dict[str, tuple[grpc.StatusCode, str]]:
        async with serving(tmp_path) as (_, channel):
            return {m.input_type.name: await outcome(channel, m.name, b"\xff\xff\xff") for m in read}

    assert run(ask()) == {
        m.input_type.name: (grpc.StatusCode.INVALID_ARGUMENT, f"the message is not a {m.input_type.name}") for m in read
    }


def test_an_internal_fault_is_one_constant_sentence(tmp_path: Path) -> None:
    async def ask() -> tuple[grpc.StatusCode, str]:
        # A log level that is not text can't be put into the response.
        async with serving(tmp_path, {"log_level": object()}) as (_, channel):
            return await outcome(channel, "LogSettings", b"")

    assert run(ask()) == (grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")


def test_requests_during_start_up_are_told_so(tmp_path: Path) -> None:
    async def ask() -> tuple[grpc.StatusCode, str]:
        async with serving(tmp_path) as (_, channel):
            return await outcome(channel, "ModelInfer", pb.ModelInferRequest(model_name="m\n").SerializeToString())

    assert run(ask()) == (grpc.StatusCode.UNAVAILABLE, "model 'm ' is loading: the server is starting")


def test_a_stream_opened_while_the_server_drains_ends_at_once(tmp_path: Path) -> None:
    async def ask() -> grpc.StatusCode:
        async with serving(tmp_path) as (parts, channel):
            parts.lifecycle.move(Phase.DRAINING)
            return await channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")().code()

    assert run(ask()) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_a_taken_port_is_a_configuration_error(tmp_path: Path, address: str) -> None:
    async def bind_twice() -> None:
        taken = socket.create_server(
            (address.strip("[]"), 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        )
        with taken:
            bind = f"{address}:{taken.getsockname()[1]}"
            with pytest.raises(ConfigurationError) as refused:
                Parts(tmp_path, {}).server.bind(bind)
            assert (
                str(refused.value) == f"grpc_bind: can't listen on {bind}: the address is in use or not this machine's"
            )

    run(bind_twice())


def test_two_servers_can_not_share_a_port(tmp_path: Path) -> None:
    async def bind_twice() -> None:
        first = Parts(tmp_path, {}).server
        port = first.bind("127.0.0.1:0")
        with pytest.raises(ConfigurationError, match="in use"):
            Parts(tmp_path, {}).server.bind(f"127.0.0.1:{port}")
        await first.stop(0)

    run(bind_twice())


def test_health_is_not_serving_from_the_first_moment_until_told_otherwise(tmp_path: Path) -> None:
    async def ask() -> list[int]:
        async with serving(tmp_path) as (parts, channel):
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            seen = [(await check(health_pb2.HealthCheckRequest())).status]
            for phase in (Phase.READY, Phase.DRAINING):
                parts.lifecycle.move(phase)
                await parts.server.show_health(parts.catalog, parts.lifecycle)
                seen += [(await check(health_pb2.HealthCheckRequest(service=s))).status for s in ("", SERVICE)]
            return seen

    assert run(ask()) == [NOT_SERVING, SERVING, SERVING, NOT_SERVING, NOT_SERVING]


def test_health_knows_no_service_that_is_not_served(tmp_path: Path) -> None:
    async def ask() -> tuple[grpc.StatusCode, str, int]:
        async with serving(tmp_path) as (_, channel):
            unknown = health_pb2.HealthCheckRequest(service="no\nsuch").SerializeToString()
            check = channel.unary_unary("/grpc.health.v1.Health/Check")(unknown)
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(unknown)
            seen = health_pb2.HealthCheckResponse.FromString(await watch.read()).status
            watch.cancel()
            return await check.code(), await check.details() or "", seen

    unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert run(ask()) == (grpc.StatusCode.NOT_FOUND, "unknown service 'no such'", unknown)


def test_a_call_ends_when_its_client_leaves(tmp_path: Path) -> None:
    async def leave() -> None:
        async with serving(tmp_path) as (parts, channel):
            running = parts.server._tasks._running
            watches = [channel.unary_stream("/grpc.health.v1.Health/Watch")(b"") for _ in range(5)]
            for watch in watches:
                await watch.read()
            assert len(running) == len(watches)
            for watch in watches:
                watch.cancel()
            await until(lambda: not running)
            await until(lambda: parts.server._server.calls.number == 0)

    run(asyncio.wait_for(leave(), 30))


def test_stopping_does_not_wait_for_an_endless_watch(tmp_path: Path) -> None:
    async def watch() -> grpc.StatusCode:
        async with serving(tmp_path) as (parts, channel):
            call = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            await call.read()
            # Waiting for the watch would take the whole grace, and fail on the test's own timeout.
            await asyncio.wait_for(parts.server.stop(600), 60)
            return await call.code()

    assert run(watch()) is grpc.StatusCode.UNAVAILABLE


def test_stopping_again_is_harmless(tmp_path: Path) -> None:
    async def stop_thrice() -> None:
        async with serving(tmp_path) as (parts, _):
            await parts.server.stop(1)
            await parts.server.stop(1)

    run(stop_thrice())
