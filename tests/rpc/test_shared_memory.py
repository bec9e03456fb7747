"""The RPCs that register shared memory: their responses, and for which callers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc.gate import SERVICE
from inferd.security.credentials import Credentials
from inferd.shared_memory.regions import RegionLimits
from inferd.shared_memory.store import RegionStore
from tests.event_loop import on_loop
from tests.rpc.parts import Parts
from tests.shared_memory.objects import shared_object

Code = grpc.StatusCode
METHODS = {m.name: m for m in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
SECRETS = {name: f"secret-of-{name}-".ljust(43, "x") for name in ("one", "two")}
LIMITS = RegionLimits(4, 4096)


class Caller:
    """Makes calls as one identity; each returns the response, or the code and message it ended with."""

    def __init__(self, channel: grpc.aio.Channel, name: str = "") -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {SECRETS[name]}"),) if name else ()

    async def __call__(self, method: str, message: Message) -> Any:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")(message.SerializeToString(), metadata=self._metadata)
        try:
            return GetMessageClass(METHODS[method].output_type).FromString(await call)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details()

    async def register(self, name: str, key: str, offset: int = 0, byte_size: int = 100) -> Any:
        asked = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size)
        return await self("SystemSharedMemoryRegister", asked)

    async def unregister(self, name: str = "") -> Any:
        return await self("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name))

    async def status(self, name: str = "") -> Any:
        return await self("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name))

    async def names(self) -> set[str]:
        return set((await self.status()).regions)


def credentials(root: Path) -> Credentials:
    """A server whose callers have the tokens in SECRETS, by name."""
    file = root / "tokens.toml"
    file.write_text(
        "".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{sha256(secret.encode()).hexdigest()}"\nscopes = ["infer"]\n'
            for name, secret in SECRETS.items()
        )
    )
    return Credentials(None, file)


@asynccontextmanager
async def serving(root: Path, store: RegionStore | None, *, tokens: bool = False) -> AsyncIterator[grpc.aio.Channel]:
    parts = Parts(root, {}, credentials=credentials(root) if tokens else None, shared_memory=store)
    port = parts.server.bind("127.0.0.1:0")
    await parts.server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await parts.server.stop(0)


@pytest.fixture
def store() -> RegionStore:
    return RegionStore(LIMITS, mapped=False)


OK = pb.SystemSharedMemoryRegisterResponse()
GIVEN_UP = pb.SystemSharedMemoryUnregisterResponse()


@on_loop
async def test_a_region_is_listed_until_it_is_unregistered(tmp_path: Path, store: RegionStore) -> None:
    with shared_object(1000) as made:
        async with serving(tmp_path, store) as channel:
            call = Caller(channel)
            assert await call.register("x", made.key, 10, 100) == OK
            assert await call.register("y", made.key, 0, 1000) == OK
            shown = (await call.status("x")).regions
            assert list(shown) == ["x"]
            assert (shown["x"].name, shown["x"].key, shown["x"].offset, shown["x"].byte_size) == (
                "x",
                made.key,
                10,
                100,
            )
            assert await call.names() == {"x", "y"}
            assert await call.status("z") == (Code.NOT_FOUND, "no shared memory region 'z' is registered")
            assert await call.unregister("z") == GIVEN_UP
            assert await call.unregister("x") == GIVEN_UP
            assert await call.names() == {"y"}
            assert await call.unregister() == GIVEN_UP
            assert await call.names() == set()


@on_loop
async def test_an_invalid_registration_is_refused_with_its_code(tmp_path: Path, store: RegionStore) -> None:
    with shared_object(1000) as made:
        async with serving(tmp_path, store) as channel:
            call = Caller(channel)
            assert await call.register("x", made.key) == OK
            refused = {
                "twice": await call.register("x", made.key),
                "no such object": await call.register("a", "/test-absent"),
                "a path": await call.register("a", "/../../etc/passwd"),
                "our own": await call.register("a", "/inferd-workers"),
                "too long a key": await call.register("a", "/" + "k" * 256),
                "too long a name": await call.register("n" * 129, made.key),
                "past the end": await call.register("a", made.key, 901, 100),
                "around the end": await call.register("a", made.key, 2**64 - 1, 2),
                "too large": await call.register("a", made.key, 0, 2**64 - 1),
                "nothing": await call.register("a", made.key, 0, 0),
            }
            assert await call.names() == {"x"}
    codes = {why: code for why, (code, _) in refused.items()}
    assert codes == {
        **dict.fromkeys(refused, Code.INVALID_ARGUMENT),
        "twice": Code.ALREADY_EXISTS,
        "too large": Code.RESOURCE_EXHAUSTED,
    }
    for _, said in refused.values():
        assert "/dev" not in said
        assert "passwd" not in said or "'/../../etc/passwd'" in said
        assert len(said) < 300


@on_loop
async def test_each_identity_has_regions_of_its_own(tmp_path: Path, store: RegionStore) -> None:
    with shared_object(1000, owner="one") as made, shared_object(1000, owner="two") as other:
        async with serving(tmp_path, store, tokens=True) as channel:
            one, two = Caller(channel, "one"), Caller(channel, "two")
            assert await one.register("x", made.key) == OK
            assert await two.names() == set()
            assert await two.status("x") == (Code.NOT_FOUND, "no shared memory region 'x' is registered")
            assert await two.unregister("x") == GIVEN_UP
            assert await two.unregister() == GIVEN_UP
            assert await two.register("x", other.key) == OK
            assert await one.names() == {"x"}
            assert (await one.status("x")).regions["x"].key == made.key
            assert (await two.status("x")).regions["x"].key == other.key


@on_loop
async def test_the_key_decides_an_objects_client_before_any_asks(tmp_path: Path, store: RegionStore) -> None:
    with shared_object(1000, owner="one") as made:
        async with serving(tmp_path, store, tokens=True) as channel:
            one, two = Caller(channel, "one"), Caller(channel, "two")
            refused = (
                Code.PERMISSION_DENIED,
                f"the key '{made.name}' is not allowed; keys of the client 'two' begin with two+",
            )
            before = await two.register("y", made.key)
            assert await one.register("x", made.key) == OK
            during = await two.register("y", made.key)
            await one.unregister()
            after = await two.register("y", made.key, 0, 2000)
            assert (before, during, after) == (refused, refused, refused)
            # Whether the object exists is not disclosed either.
            code, said = await two.register("y", "/one+absent")
            assert (code, said) == (refused[0], refused[1].replace(made.name, "one+absent"))
            assert await two.names() == set()


@on_loop
async def test_one_client_leaves_regions_for_another(tmp_path: Path, store: RegionStore) -> None:
    with shared_object(1000, owner="one") as made, shared_object(4096, owner="two") as other:
        async with serving(tmp_path, store, tokens=True) as channel:
            one, two = Caller(channel, "one"), Caller(channel, "two")
            assert [await one.register(f"{n}", made.key) for n in range(3)] == [OK] * 3
            assert await one.register("3", made.key) == (
                Code.RESOURCE_EXHAUSTED,
                "cannot register more shared memory: the limit is 3 regions of one client",
            )
            assert await two.register("0", other.key, 0, 2848) == (
                Code.RESOURCE_EXHAUSTED,
                "cannot register more shared memory: the limit is 2847 bytes in all regions of one client",
            )
            assert await two.register("0", other.key, 0, 2847) == OK


@on_loop
async def test_with_shared_memory_off_only_registration_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, None) as channel:
        call = Caller(channel)
        assert await call.names() == set()
        assert await call.unregister() == GIVEN_UP
        code, said = await call.register("x", "/test-absent")
        assert code is Code.UNIMPLEMENTED
        assert "shared_memory is off" in said
        metadata = await call("ServerMetadata", pb.ServerMetadataRequest())
        assert "system_shared_memory" not in metadata.extensions


@on_loop
async def test_the_extension_is_listed_if_it_is_on(tmp_path: Path, store: RegionStore) -> None:
    async with serving(tmp_path, store) as channel:
        metadata = await Caller(channel)("ServerMetadata", pb.ServerMetadataRequest())
        assert "system_shared_memory" in metadata.extensions


@on_loop
async def test_cuda_calls_are_answered_but_never_registered(tmp_path: Path, store: RegionStore) -> None:
    async with serving(tmp_path, store) as channel:
        call = Caller(channel)
        status = await call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest())
        assert status == pb.CudaSharedMemoryStatusResponse()
        given_up = await call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())
        assert given_up == pb.CudaSharedMemoryUnregisterResponse()
        code, _ = await call("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="x"))
        assert code is Code.UNIMPLEMENTED
