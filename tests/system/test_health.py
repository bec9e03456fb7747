"""Health, reflection and channelz, the services next to inference, as their usual clients use them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc import StatusCode
from grpc_channelz.v1 import channelz_pb2
from grpc_reflection.v1alpha import reflection_pb2

from inferd._pb import health_pb2
from inferd._pb import open_inference_pb2 as pb
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.wire import SERVICE, connect, echo, method, outcome

pytestmark = pytest.mark.system

Status = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = echo_models.write(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir), "--repository-control") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def asked(daemon: Daemon, ask: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
    """What ``ask`` gives on a channel to ``daemon``."""

    async def connected() -> Any:
        async with connect(daemon.grpc) as channel:
            return await ask(channel)

    return asyncio.run(connected())


def check(channel: grpc.aio.Channel, service: str) -> Any:
    return channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=Status.FromString,
    )(health_pb2.HealthCheckRequest(service=service))


def watch(channel: grpc.aio.Channel, service: str) -> Any:
    return channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=Status.FromString,
    )(health_pb2.HealthCheckRequest(service=service))


def test_list_names_every_service_with_its_status(daemon: Daemon) -> None:
    async def listed(channel: grpc.aio.Channel) -> Any:
        return await channel.unary_unary(
            "/grpc.health.v1.Health/List",
            request_serializer=health_pb2.HealthListRequest.SerializeToString,
            response_deserializer=health_pb2.HealthListResponse.FromString,
        )(health_pb2.HealthListRequest())

    statuses = {name: answer.status for name, answer in asked(daemon, listed).statuses.items()}
    assert {statuses[name] for name in ("", SERVICE.full_name, "echo", "echo/1")} == {Status.SERVING}
    assert statuses["broken"] == Status.NOT_SERVING


@pytest.mark.parametrize("service", ["", SERVICE.full_name, "echo", "echo/1"])
def test_server_service_models_and_versions_are_serving(daemon: Daemon, service: str) -> None:
    assert asked(daemon, lambda channel: check(channel, service)).status == Status.SERVING


@pytest.mark.parametrize("service", ["broken", "broken/1"])
def test_a_model_that_did_not_load_is_not_serving(daemon: Daemon, service: str) -> None:
    assert asked(daemon, lambda channel: check(channel, service)).status == Status.NOT_SERVING


@pytest.mark.parametrize("service", ["nosuch", "echo/2", "echo/", "ECHO"])
def test_what_is_not_there_is_not_found(daemon: Daemon, service: str) -> None:
    assert asked(daemon, lambda channel: outcome(check(channel, service)))[0] is StatusCode.NOT_FOUND


def test_a_watch_of_what_is_not_there_says_so_and_stays(daemon: Daemon) -> None:
    async def ask(channel: grpc.aio.Channel) -> tuple[int, bool]:
        call = watch(channel, "nosuch")
        return (await call.read()).status, call.done()

    assert asked(daemon, ask) == (Status.SERVICE_UNKNOWN, False)


def test_a_watch_follows_a_model_through_unload_and_load(daemon: Daemon) -> None:
    async def ask(channel: grpc.aio.Channel) -> list[list[int]]:
        calls = [watch(channel, name) for name in ("text", "text/1", "echo", "")]
        seen = [[(await call.read()).status] for call in calls]
        for name, made in (("Unload", pb.RepositoryModelUnloadRequest), ("Load", pb.RepositoryModelLoadRequest)):
            await method(channel, f"RepositoryModel{name}")(made(model_name="text"))
            for call, statuses in zip(calls[:2], seen[:2], strict=True):
                statuses.append((await call.read()).status)
        # The others had no news: theirs would have come before the answer to this.
        assert (await check(channel, "echo")).status == Status.SERVING
        return seen

    through = [Status.SERVING, Status.NOT_SERVING, Status.SERVING]
    assert asked(daemon, ask) == [through, through, [Status.SERVING], [Status.SERVING]]


def test_the_protocols_own_questions_agree(daemon: Daemon) -> None:
    async def ask(channel: grpc.aio.Channel) -> list[bool]:
        ready = method(channel, "ModelReady")
        return [
            (await method(channel, "ServerLive")(b"")).live,
            (await method(channel, "ServerReady")(b"")).ready,
            (await ready(pb.ModelReadyRequest(name="echo"))).ready,
            (await ready(pb.ModelReadyRequest(name="echo", version="1"))).ready,
            (await ready(pb.ModelReadyRequest(name="broken"))).ready,
        ]

    assert asked(daemon, ask) == [True, True, True, True, False]


def test_reflection_lists_the_services_and_describes_the_protocol(daemon: Daemon) -> None:
    async def ask(channel: grpc.aio.Channel) -> tuple[list[str], list[str]]:
        call = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        services = [service.name for service in (await call.read()).list_services_response.service]
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE.full_name))
        files = (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.done_writing()
        return services, [FileDescriptorProto.FromString(file).service[0].name for file in files[:1]]

    services, described = asked(daemon, ask)
    assert services == [
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inferd.Tuner",
        "inference.GRPCInferenceService",
    ]
    assert described == ["GRPCInferenceService"]


def test_channelz_knows_the_server_and_its_calls(daemon: Daemon) -> None:
    async def ask(channel: grpc.aio.Channel) -> list[int]:
        servers = channel.unary_unary(
            "/grpc.channelz.v1.Channelz/GetServers",
            request_serializer=channelz_pb2.GetServersRequest.SerializeToString,
            response_deserializer=channelz_pb2.GetServersResponse.FromString,
        )
        started = []
        for _ in range(2):
            await method(channel, "ModelInfer")(echo([1]))
            (server,) = (await servers(channelz_pb2.GetServersRequest())).server
            started.append(server.data.calls_started)
        return started

    first, second = asked(daemon, ask)
    assert second > first
