"""System shared memory from outside: real clients use it, and hostile ones neither get at what is another's nor end
the daemon."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import wraps
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any, ParamSpec

import grpc
import numpy as np
import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests import models
from tests.shared_memory.objects import FOLDER, shared_object
from tests.system import clients, gauges, wire
from tests.system.daemon import Daemon
from tests.system.test_perf_analyzer import SERVER, SHORT

pytestmark = pytest.mark.system

Code = grpc.StatusCode
P = ParamSpec("P")

SCRIPT = Path(__file__).with_name("tritonclient_shared.py").read_text()
SHAPE = (1, 3, 64, 64)
NBYTES = int(np.prod(SHAPE)) * 4
# The models here are trusted, and a daemon is to be there soon.
PLAIN = ["--preflight", "off"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    models.save(models.sum_and_difference([-1, 2]), root, "sums", settings="[batching]\nmax_size = 16384\n")
    models.save(models.identity(DType.BYTES, [-1]), root, "words")
    for path in ("async", "sync"):
        models.save(models.negative(SHAPE), root, f"negative-{path}", settings=f"[execution]\npath = '{path}'\n")
    models.save(models.slow(60), root, "slow")
    return root


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one of them."""
    root = tmp_path_factory.mktemp("little")
    models.save(models.negative(SHAPE), root, "negative-async", settings="[execution]\npath = 'async'\n")
    return root


@pytest.fixture(scope="module", params=["copy", "mapped"])
def server(request: pytest.FixtureRequest, repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    with Daemon(repository, "--cache-dir", str(cache_dir), *PLAIN, "--shared-memory", request.param) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


@pytest.fixture(scope="module")
def copying(repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    """A daemon that outlives what its clients do to their memory."""
    with Daemon(repository, "--cache-dir", str(cache_dir), *PLAIN, "--shared-memory", "copy") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def alone(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """``test`` on an event loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Client:
    """Calls, each ending in an answer or a code and a message."""

    def __init__(self, channel: grpc.aio.Channel, secret: str = "") -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {secret}"),) if secret else ()

    async def __call__(self, method: str, message: Any) -> Any:
        call = wire.method(self._channel, method)(message, metadata=self._metadata)
        code = await call.code()
        return await call if code is Code.OK else (code, await call.details())

    async def register(self, name: str, key: str, byte_size: int, offset: int = 0) -> Any:
        asked = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size)
        return await self("SystemSharedMemoryRegister", asked)

    async def unregister(self, name: str = "") -> Any:
        return await self("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name))

    async def infer(self, message: pb.ModelInferRequest) -> Any:
        return await self("ModelInfer", message)


def negative(path: str, region: str = "", at: int = 0, into: int | None = None) -> pb.ModelInferRequest:
    """A request for the negative of what is at ``at``, to be put at ``into``."""
    message = pb.ModelInferRequest(model_name=f"negative-{path}")
    item = message.inputs.add(name="x", datatype="FP32", shape=SHAPE)
    if region:
        _place(item.parameters, region, at, NBYTES)
    output = message.outputs.add(name="y")
    if into is not None:
        _place(output.parameters, region, into, NBYTES)
    return message


def _place(parameters: Any, region: str, offset: int, nbytes: int) -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = nbytes
    parameters["shared_memory_offset"].int64_param = offset


def floats(data: bytes) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.frombuffer(data, np.float32)


def values(seed: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.random.default_rng(seed).standard_normal(NBYTES // 4).astype(np.float32)


# -- clients of others ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_tritonclient_puts_inputs_and_finds_outputs_in_shared_memory(server: Daemon, kind: str) -> None:
    done = clients.run(SCRIPT, server.grpc, kind)

    for name, size in (("small", 64), ("large", 131072)):
        seen = done[name]
        region_in, region_out = seen["registered"]
        assert (region_in.endswith("-in"), region_out.endswith("-out")) == (True, True)
        assert seen["found"] == [True] * 4
        assert seen["raw"] == [0, 0]
        difference, total = seen["shown"]
        region = {"sharedMemoryRegion": region_out}
        assert difference["parameters"] == {
            "shared_memory_region": {"stringParam": region["sharedMemoryRegion"]},
            "shared_memory_byte_size": {"int64Param": str(size)},
            "shared_memory_offset": {"int64Param": str(size)},
        }
        assert "shared_memory_offset" not in total["parameters"]
        assert seen["one left"] == [region_out]
        assert seen["gone"]["code"] == "NOT_FOUND"
        assert seen["none left"] == []
    words = done["words"]
    assert words["same"]
    assert words["shown"]["parameters"]["shared_memory_byte_size"] == {"int64Param": str(words["size"])}
    size = words["size"]
    assert words["small"] == {
        "code": "INVALID_ARGUMENT",
        "message": f"model 'words': output 'x' is {size} bytes; its shared_memory_byte_size is {size - 1}",
    }


def test_perf_analyzer_measures_over_shared_memory(server: Daemon) -> None:
    load = ["--shared-memory", "system", "--output-shared-memory-size", str(NBYTES), "--concurrency-range", "4", *SHORT]

    done = clients.perf_analyzer("-m", "negative-async", "-i", "grpc", "-u", server.grpc, *load)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = SERVER.search(done.stdout)
    assert found, done.stdout
    assert int(found["successes"]) >= 50


# -- nothing is mixed up ----------------------------------------------------------


@pytest.mark.parametrize("path", ["async", "sync"])
@alone
async def test_requests_with_and_without_shared_memory_never_get_each_others_data(server: Daemon, path: str) -> None:
    """Many at once on few slots, each with values of its own; regions come and go between them."""
    dice = np.random.default_rng(7)
    with shared_object(64 * NBYTES) as made:
        async with wire.connect(server.grpc) as channel:
            client = Client(channel)

            async def one(turn: int, place: int) -> None:
                sent, at, into = values(turn), 2 * place * NBYTES, (2 * place + 1) * NBYTES
                region, how = f"r{turn}", dice.integers(4)
                message = negative(path, region if how else "", at, into if how > 1 else None)
                if how:
                    assert (
                        await client.register(region, made.key, 64 * NBYTES) == pb.SystemSharedMemoryRegisterResponse()
                    )
                    made.write(sent.tobytes(), at)
                    made.write(bytes(NBYTES), into)
                else:
                    message.raw_input_contents.append(sent.tobytes())
                answer = await client.infer(message)
                assert isinstance(answer, pb.ModelInferResponse), answer
                got = made.read(NBYTES, into) if how > 1 else answer.raw_output_contents[0]
                assert np.array_equal(floats(got), -sent)
                if how:
                    # What was sent is as it was.
                    assert np.array_equal(floats(made.read(NBYTES, at)), sent)
                    await client.unregister(region)

            for begin in range(0, 160, 16):
                await asyncio.gather(*(one(begin + place, place) for place in range(16)))


@alone
async def test_a_region_that_is_unregistered_while_a_run_uses_it_stays_until_that_has_ended(server: Daemon) -> None:
    before = _open_objects(server)
    with shared_object(4096) as made:
        async with wire.connect(server.grpc) as channel:
            client = Client(channel)
            await client.register("r", made.key, 4096)
            made.write(np.array([7.5], np.float32).tobytes())
            message = pb.ModelInferRequest(model_name="slow")
            item = message.inputs.add(name="x", datatype="FP32", shape=[1])
            _place(item.parameters, "r", 0, 4)
            _place(message.outputs.add(name="y").parameters, "r", 8, 4)
            running = asyncio.ensure_future(client.infer(message))
            await asyncio.to_thread(gauges.wait_until, server, "inferd_infer_requests_busy", "slow", 1)
            assert await client.unregister("r") == pb.SystemSharedMemoryUnregisterResponse()
            made.path.unlink()
            answer = await running
            assert isinstance(answer, pb.ModelInferResponse), answer
            assert floats(made.read(4, 8)).tolist() == [7.5]
            code, said = await client.infer(message)
            assert (code, said) == (Code.NOT_FOUND, "no shared memory region 'r' is registered")
    assert _open_objects(server) == before


def _open_objects(server: Daemon) -> int:
    """Descriptors and mappings of shared memory objects that the daemon has."""
    process = Path(f"/proc/{server.process.pid}")
    descriptors = 0
    for descriptor in (process / "fd").iterdir():
        # Connections come and go meanwhile.
        with suppress(OSError):
            descriptors += str(descriptor.readlink()).startswith(str(FOLDER))
    return descriptors + (process / "maps").read_text().count(f"{FOLDER}/")


# -- hostile clients --------------------------------------------------------------


@alone
async def test_memory_that_is_truncated_at_any_time_does_not_end_the_daemon(copying: Daemon) -> None:
    sent = values(1)
    with shared_object(2 * NBYTES) as made:
        async with wire.connect(copying.grpc) as channel:
            client = Client(channel)
            await client.register("r", made.key, 2 * NBYTES)
            stop = asyncio.Event()

            async def truncate() -> None:
                while not stop.is_set():
                    for size in (0, NBYTES + 1, 2 * NBYTES):
                        made.truncate(size)
                        await asyncio.sleep(0)

            truncating = asyncio.create_task(truncate())
            answers = []
            for _ in range(20):
                calls = [client.infer(negative(path, "r", 0, NBYTES)) for path in ("async", "sync") * 4]
                answers += await asyncio.gather(*calls)
            stop.set()
            await truncating
            for answer in answers:
                gone = (Code.INVALID_ARGUMENT, "region 'r' is larger than its shared memory object, which has shrunk")
                assert isinstance(answer, pb.ModelInferResponse) or answer == gone
            made.truncate(0)
            assert await client.infer(negative("async", "r", 0, NBYTES)) == gone
            made.truncate(2 * NBYTES)
            made.write(sent.tobytes())
            assert isinstance(await client.infer(negative("async", "r", 0, NBYTES)), pb.ModelInferResponse)
            assert np.array_equal(floats(made.read(NBYTES, NBYTES)), -sent)
            await client.unregister()


@alone
async def test_memory_that_is_truncated_before_a_request_does_not_end_the_daemon(server: Daemon) -> None:
    with shared_object(2 * NBYTES) as made:
        async with wire.connect(server.grpc) as channel:
            client = Client(channel)
            await client.register("r", made.key, 2 * NBYTES)
            made.truncate(NBYTES)
            gone = (Code.INVALID_ARGUMENT, "region 'r' is larger than its shared memory object, which has shrunk")
            if server_maps(server):
                assert await client.infer(negative("async", "r", 0, NBYTES)) == gone
            made.truncate(10)
            for path in ("async", "sync"):
                assert await client.infer(negative(path, "r", 0)) == gone
                assert await client.infer(negative(path, "r", 0, NBYTES)) == gone
            await client.unregister()


def server_maps(server: Daemon) -> bool:
    """Whether it uses shared memory in place."""
    return f"{FOLDER}/" in Path(f"/proc/{server.process.pid}/maps").read_text()


@alone
async def test_what_reaches_out_of_a_region_is_refused_by_name(server: Daemon) -> None:
    with shared_object(4 * NBYTES) as made:
        async with wire.connect(server.grpc) as channel:
            client = Client(channel)
            await client.register("r", made.key, 2 * NBYTES, NBYTES)
            made.write(b"\7" * NBYTES, 3 * NBYTES)
            refused = [
                await client.infer(negative("async", "r", at, into))
                for at, into in (
                    (NBYTES + 1, 0),
                    (0, NBYTES + 1),
                    (2**63 - 1, 0),
                    (0, 2**63 - 1),
                    (-1, 0),
                    (0, -NBYTES),
                )
            ]
            assert {code for code, _ in refused} == {Code.INVALID_ARGUMENT}
            assert all("region 'r'" in said or "shared_memory_offset" in said for _, said in refused)
            assert made.read(NBYTES, 3 * NBYTES) == b"\7" * NBYTES
            assert await client.infer(negative("async", "absent")) == (
                Code.NOT_FOUND,
                "no shared memory region 'absent' is registered",
            )
            await client.unregister()


def secret(name: str) -> str:
    return f"secret-of-{name}-".ljust(43, "x")


@pytest.fixture(scope="module")
def knowing(little: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that knows its callers, one and two."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(
        "".join(
            f'[[token]]\nname = "{name}"\nsha256 = "{sha256(secret(name).encode()).hexdigest()}"\nscopes = ["infer"]\n'
            for name in ("one", "two")
        )
    )
    flags = ["--cache-dir", str(cache_dir), *PLAIN, "--tokens-file", str(tokens), "--shared-memory", "copy"]
    with Daemon(little, *flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


@alone
async def test_a_caller_uses_no_region_of_another(knowing: Daemon) -> None:
    with shared_object(2 * NBYTES, owner="one") as made:
        made.write(values(3).tobytes())
        async with wire.connect(knowing.grpc) as channel:
            one, two, nobody = (Client(channel, secret(name) if name else "") for name in ("one", "two", ""))
            await one.register("r", made.key, 2 * NBYTES)
            unknown = (Code.NOT_FOUND, "no shared memory region 'r' is registered")
            reading, writing = negative("async", "r", 0), negative("async", "", 0, NBYTES)
            _place(writing.outputs[0].parameters, "r", NBYTES, NBYTES)
            writing.raw_input_contents.append(bytes(NBYTES))
            for _ in range(2):
                assert await two.infer(reading) == unknown
                assert await two.infer(writing) == unknown
                # To the byte what was refused, and good: that makes it nobody else's.
                assert isinstance(await one.infer(reading), pb.ModelInferResponse)
            assert (await two.register("mine", made.key, NBYTES))[0] is Code.PERMISSION_DENIED
            assert (await nobody.infer(reading))[0] is Code.UNAUTHENTICATED
            assert (await nobody.register("r", made.key, NBYTES))[0] is Code.UNAUTHENTICATED
            await two.unregister()
            answer = await one.infer(reading)
            assert np.array_equal(floats(answer.raw_output_contents[0]), -values(3))
            assert not any(made.read(NBYTES, NBYTES))


@pytest.mark.parametrize("when", ["before it is registered", "while it is registered", "after it was unregistered"])
@alone
async def test_a_caller_gets_at_no_object_of_another_by_its_key(knowing: Daemon, when: str) -> None:
    """Whose mode would let it, as everything here runs as one user."""
    with shared_object(2 * NBYTES, owner="one") as made, shared_object(2 * NBYTES, owner="two") as own:
        secret_values = values(5)
        made.write(secret_values.tobytes())
        link = FOLDER / f"two+{made.name}"
        async with wire.connect(knowing.grpc) as channel:
            one, two = Client(channel, secret("one")), Client(channel, secret("two"))
            if when != "before it is registered":
                assert await one.register("r", made.key, 2 * NBYTES) == pb.SystemSharedMemoryRegisterResponse()
            if when == "after it was unregistered":
                await one.unregister()
            refused = [await two.register("stolen", key, 2 * NBYTES) for key in (made.key, made.name)]
            link.symlink_to(made.path)
            refused.append(await two.register("stolen", f"/{link.name}", 2 * NBYTES))
            link.unlink()
            assert [code for code, _ in refused] == [Code.PERMISSION_DENIED] * 2 + [Code.INVALID_ARGUMENT]
            # Nothing that was refused is there to be read, or to be written.
            for message in (negative("async", "stolen"), negative("async", "stolen", 0, NBYTES)):
                unknown = (Code.NOT_FOUND, "no shared memory region 'stolen' is registered")
                assert await two.infer(message) == unknown
            await one.unregister()
            assert await one.register("r", made.key, 2 * NBYTES) == pb.SystemSharedMemoryRegisterResponse()
            assert await two.register("r", own.key, 2 * NBYTES) == pb.SystemSharedMemoryRegisterResponse()
            answer = await one.infer(negative("async", "r"))
            assert np.array_equal(floats(answer.raw_output_contents[0]), -secret_values)
            answer = await two.infer(negative("async", "r", 0, NBYTES))
            assert isinstance(answer, pb.ModelInferResponse)
            assert not any(made.read(NBYTES, NBYTES))
            await one.unregister()
            await two.unregister()


@alone
async def test_a_caller_that_registers_all_it_may_leaves_regions_to_another(knowing: Daemon) -> None:
    with shared_object(NBYTES, owner="one") as made, shared_object(NBYTES, owner="two") as own:
        async with wire.connect(knowing.grpc) as channel:
            one, two = Client(channel, secret("one")), Client(channel, secret("two"))
            refused = [
                answer
                for number in range(260)
                if isinstance(answer := await one.register(f"r{number}", made.key, NBYTES), tuple)
            ]
            said = "cannot register more shared memory: the limit is 192 regions of one client"
            assert refused == [(Code.RESOURCE_EXHAUSTED, said)] * 68
            assert await two.register("r", own.key, NBYTES) == pb.SystemSharedMemoryRegisterResponse()
            await one.unregister()
            await two.unregister()


def test_tritonclient_needs_nothing_but_a_key_that_is_its_own(knowing: Daemon) -> None:
    script = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
address, secret, *keys = sys.argv[1:]
headers, said, nbytes = {"authorization": "Bearer " + secret}, [], 49152
client = triton.InferenceServerClient(address)
for key in keys:
    region = shm.create_shared_memory_region("pixels", key, nbytes)
    try:
        client.register_system_shared_memory("pixels", key, nbytes, headers=headers)
        shm.set_shared_memory_region(region, [np.full((1, 3, 64, 64), 3, np.float32)])
        image = triton.InferInput("x", [1, 3, 64, 64], "FP32")
        image.set_shared_memory("pixels", nbytes)
        said.append(float(client.infer("negative-async", [image], headers=headers).as_numpy("y").mean()))
        client.unregister_system_shared_memory("pixels", headers=headers)
    except triton.InferenceServerException as error:
        said.append([error.status(), error.message()])
    finally:
        shm.destroy_shared_memory_region(region)
print(json.dumps(said))
"""
    keys = [f"/{whose}{token_hex(8)}" for whose in ("one+", "test-", "two+")]
    refusals = [
        [
            "StatusCode.PERMISSION_DENIED",
            f"the key '{key[1:]}' is not allowed; keys of the client 'one' begin with one+",
        ]
        for key in keys[1:]
    ]
    assert clients.run(script, knowing.grpc, secret("one"), *keys) == [-3.0, *refusals]


@pytest.fixture(scope="module")
def plain(little: Path, cache_dir: Path) -> Iterator[Daemon]:
    """A daemon without any flag for it."""
    with Daemon(little, "--cache-dir", str(cache_dir), *PLAIN) as daemon:
        yield daemon


@alone
async def test_it_is_off_unless_it_is_switched_on(plain: Daemon) -> None:
    with shared_object(NBYTES) as made:
        async with wire.connect(plain.grpc) as channel:
            client = Client(channel)
            assert (await client.register("r", made.key, NBYTES))[0] is Code.UNIMPLEMENTED
            code, said = await client.infer(negative("async", "r", 0))
            assert (code, said) == (
                Code.INVALID_ARGUMENT,
                "model 'negative-async': input 'x': shared memory is not enabled on this server",
            )
