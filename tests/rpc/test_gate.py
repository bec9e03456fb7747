"""The gate: methods that its table does not list are closed, whatever implements them."""

from contextlib import suppress

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_reflection.v1alpha import reflection_pb2

from inferd._pb import health_pb2, tuner_pb2
from inferd._pb import open_inference_pb2 as pb
from inferd.config.tokens import SCOPES
from inferd.rpc.call_tasks import CallTasks, Handler
from inferd.rpc.gate import ACCESS, SERVICE, Access, Gate
from inferd.transport.call import ServerCall
from inferd.transport.server import GrpcServer
from tests.event_loop import run

SERVED = (
    pb.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    tuner_pb2.DESCRIPTOR.services_by_name["Tuner"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"],
)
OPEN = f"/{SERVICE}/ServerLive"
CONTROL = f"/{SERVICE}/RepositoryModelLoad"


def test_the_table_names_every_rpc_that_is_served_and_no_other() -> None:
    assert set(ACCESS) == {f"/{service.full_name}/{m.name}" for service in SERVED for m in service.methods}


def test_health_is_open_changes_need_an_administrator_and_the_rest_infer_or_read() -> None:
    named = {name.rpartition("/")[2]: access for name, access in ACCESS.items()}
    assert {n for n, a in named.items() if a is Access.OPEN} == {
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "Check",
        "Watch",
    }
    assert {n for n, a in named.items() if a is Access.INFER} == {
        "ModelInfer",
        "ModelStreamInfer",
        *(f"{kind}SharedMemory{do}" for kind in ("System", "Cuda") for do in ("Status", "Register", "Unregister")),
    }
    assert {n: a for n, a in named.items() if a in (Access.REPOSITORY, Access.TUNER)} == {
        "RepositoryModelLoad": Access.REPOSITORY,
        "RepositoryModelUnload": Access.REPOSITORY,
        "Pin": Access.TUNER,
        "Rollback": Access.TUNER,
        "Tune": Access.TUNER,
    }


def test_every_access_but_open_is_a_scope() -> None:
    assert {access.value for access in Access if access is not Access.OPEN} == set(SCOPES)


async def _answer(_: bytes, __: ServerCall) -> bytes:
    return b"answered"


async def _answers(call: ServerCall) -> None:
    await call.write(b"answered")


def handlers() -> dict[str, Handler]:
    """Of all kinds, by the names of their methods; each answers once."""
    tasks = CallTasks()
    known = {OPEN: tasks.unary(_answer), CONTROL: tasks.unary(_answer)}
    extra = {"Unary": tasks.unary(_answer), "Stream": tasks.stream(_answers)}
    return known | {f"/extra.Service/{kind}": handler for kind, handler in extra.items()}


def outcome(method: str, *, repository_control: bool = False, gate: bool = True) -> tuple[grpc.StatusCode, str]:
    """How a call of ``method`` ends at a server with the gate in front of some handlers."""

    async def call() -> tuple[grpc.StatusCode, str]:
        known, gates = handlers(), Gate(enabled=[Access.REPOSITORY] if repository_control else [])

        def handle(call: ServerCall) -> None:
            if (handler := known.get(call.method)) is None:
                call.fail(grpc.StatusCode.UNIMPLEMENTED.value[0], "Method not found!")
            elif not gate or gates.admits(call):
                handler(call)

        server = GrpcServer(handle, [])
        port = server.listen("127.0.0.1:0")
        server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                # On the wire all kinds are alike for one message. This client sends it along with the call: one
                # that writes to a stream may find it refused already, and reports INTERNAL of its own.
                stream = channel.unary_stream(method)(b"asked")
                with suppress(grpc.aio.AioRpcError):
                    assert [answer async for answer in stream] == [b"answered"]
                return await stream.code(), await stream.details()
        finally:
            await server.stop(0)

    return run(call())


@pytest.mark.parametrize("kind", ["Unary", "Stream"])
def test_an_rpc_missing_from_the_table_is_denied(kind: str) -> None:
    assert outcome(f"/extra.Service/{kind}", gate=False)[0] is grpc.StatusCode.OK
    assert outcome(f"/extra.Service/{kind}") == (grpc.StatusCode.PERMISSION_DENIED, f"{kind} is not allowed")


@pytest.mark.parametrize("method", [f"/{SERVICE}/NoSuch", "/no.such.Service/Call", f"/{SERVICE}/", "/"])
def test_an_rpc_that_does_not_exist_is_unimplemented(method: str) -> None:
    assert outcome(method)[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", [OPEN.lower(), OPEN + "/", "/" + OPEN, CONTROL + "/", CONTROL.upper()])
def test_no_other_spelling_opens_an_rpc(method: str) -> None:
    assert outcome(method)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_an_open_rpc_is_admitted() -> None:
    assert outcome(OPEN) == (grpc.StatusCode.OK, "")


def test_repository_control_is_denied_until_it_is_enabled() -> None:
    assert outcome(CONTROL) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "RepositoryModelLoad is not allowed; start the server with --repository-control",
    )
    assert outcome(CONTROL, repository_control=True) == (grpc.StatusCode.OK, "")
