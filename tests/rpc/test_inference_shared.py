"""Requests with tensors in shared memory, one after another with the same head: each looks up its memory again."""

import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import NotAllowed
from inferd.lifecycle import Phase
from inferd.rpc import codec, wire
from inferd.rpc.call import CallContext
from inferd.shared_memory.regions import RegionLimits
from inferd.shared_memory.store import RegionStore
from tests import models
from tests.event_loop import on_loop
from tests.rpc.parts import FutureRecipient, Parts
from tests.rpc.test_shared_memory import SECRETS, credentials
from tests.rpc.test_shared_memory import Caller as Client
from tests.rpc.test_shm_params import at
from tests.shared_memory.objects import SharedObject, shared_object
from tests.shared_memory.test_store import open_files
from tests.system.wire import connect, method

Code = grpc.StatusCode

# Large enough to be used in place if it is mapped.
SHAPE = (1, 1, 128, 128)
NBYTES = int(np.prod(SHAPE)) * 4
SIZE = 8 * NBYTES


@asynccontextmanager
async def serving(
    root: Path, *, mapped: bool = False, tokens: bool = False
) -> AsyncIterator[tuple[Parts, grpc.aio.Channel]]:
    """The models negative, of a fixed shape, and sums, of any number of rows."""
    models.save(models.negative(SHAPE), root, "negative")
    models.save(models.sum_and_difference([-1, 2]), root, "sums")
    parts = Parts(
        root,
        {},
        credentials=credentials(root) if tokens else None,
        shared_memory=RegionStore(RegionLimits(), mapped=mapped),
    )
    await parts.catalog.load_all()
    parts.lifecycle.move(Phase.READY)
    port = parts.server.bind("127.0.0.1:0")
    await parts.server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as channel:
            yield parts, channel
    finally:
        await parts.server.stop(0)
        await parts.catalog.close()


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The requests parsed so far."""
    seen: list[bytes] = []
    parse: Callable[..., Any] = codec.parse
    monkeypatch.setattr(codec, "parse", lambda raw, kind: seen.append(raw) or parse(raw, kind))
    return seen


def values(seed: int, count: int = NBYTES // 4) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def negative(offset: int | None = 0, into: int | None = None, nbytes: int = NBYTES) -> pb.ModelInferRequest:
    """A request for the negative of the data at ``offset`` of the region r, to be written at ``into``."""
    message = pb.ModelInferRequest(model_name="negative")
    item = message.inputs.add(name="x", datatype="FP32", shape=SHAPE)
    output = message.outputs.add(name="y")
    if offset is not None:
        at(item.parameters, offset or None, nbytes)
    if into is not None:
        at(output.parameters, into or None, nbytes)
    return message


def sums(rows: int, placed: Sequence[str]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="sums")
    for n, name in enumerate(("left", "right")):
        item = message.inputs.add(name=name, datatype="FP32", shape=[rows, 2])
        if name in placed:
            at(item.parameters, n * NBYTES or None, 8 * rows)
        else:
            message.raw_input_contents.append(values(n, 2 * rows).tobytes())
    for n, name in enumerate(("difference", "sum")):
        item = message.outputs.add(name=name)  # type: ignore[assignment]
        if name in placed:
            at(item.parameters, (n + 2) * NBYTES, 8 * rows + 4)
    return message


async def unary(channel: grpc.aio.Channel, raw: bytes) -> Any:
    call = method(channel, "ModelInfer")(raw)
    code = await call.code()
    return await call if code is Code.OK else (code, await call.details())


async def streamed(channel: grpc.aio.Channel, raw: bytes) -> Any:
    call = method(channel, "ModelStreamInfer")()
    await call.write(raw)
    await call.done_writing()
    answer = await call.read()
    assert not answer.error_message
    return answer.infer_response


def as_no_library_writes_it(message: pb.ModelInferRequest) -> bytes:
    """The same message with its id last, which is parsed each time."""
    request_id = pb.ModelInferRequest(id=message.id).SerializeToString()
    rest = pb.ModelInferRequest()
    rest.CopyFrom(message)
    rest.ClearField("id")
    # Without an id the model's name can still be repeated.
    return rest.SerializeToString() + (
        request_id or pb.ModelInferRequest(model_name=message.model_name).SerializeToString()
    )


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@on_loop
async def test_both_ways_answer_and_write_the_same(tmp_path: Path, parses: list[bytes], mapped: bool) -> None:
    with shared_object(SIZE) as made:
        async with serving(tmp_path, mapped=mapped) as (_, channel):
            await Client(channel).register("r", made.key, 0, SIZE)
            asked = [
                negative(a, b) for a, b in product((None, 0, NBYTES), (None, 0, 2 * NBYTES)) if a != b or a is None
            ]
            names = ("left", "right", "difference", "sum")
            asked += [sums(rows, [n for n in names if n != out]) for rows in (1, 3) for out in (*names, "")]
            for message, request_id, ask in product(asked, ("", "7"), (unary, streamed)):
                if message.model_name == "negative" and "shared_memory_region" not in message.inputs[0].parameters:
                    message.raw_input_contents[:] = [values(3).tobytes()]
                message.id = request_id
                seen = []
                for raw in (as_no_library_writes_it(message), *[message.SerializeToString()] * 3):
                    made.write(b"".join(values(n).tobytes() for n in range(8)))
                    answer = await ask(channel, raw)
                    assert isinstance(answer, pb.ModelInferResponse), answer
                    seen.append((answer, made.read(SIZE)))
                assert all(one == seen[0] for one in seen)
                assert seen[0][0].id == request_id
    # By the end each head had a template.
    heads = {message.SerializeToString() for message in asked}
    assert all(parses.count(raw) <= 1 for raw in heads)


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@on_loop
async def test_a_region_registered_again_is_the_one_used(tmp_path: Path, parses: list[bytes], mapped: bool) -> None:
    raw = negative(0, NBYTES).SerializeToString()
    gc.collect()
    before = open_files()
    async with serving(tmp_path, mapped=mapped) as (_, channel):
        client = Client(channel)
        for turn in range(3):
            with shared_object(2 * NBYTES) as made:
                await client.register("r", made.key, 0, 2 * NBYTES)
                for seed in (turn, turn + 10):
                    made.write(values(seed).tobytes())
                    assert isinstance(await unary(channel, raw), pb.ModelInferResponse)
                    assert np.array_equal(np.frombuffer(made.read(NBYTES, NBYTES), np.float32), -values(seed))
                await client.unregister("r" if turn else "")
                # Only this process's other half, the client, still holds the memory.
                assert open_files() == before + 1
                assert await unary(channel, raw) == (Code.NOT_FOUND, "no shared memory region 'r' is registered")
        with shared_object(2 * NBYTES) as made:
            await client.register("r", made.key, 0, 2 * NBYTES - 1)
            code, said = await unary(channel, raw)
            assert code is Code.INVALID_ARGUMENT
            assert said == f"region 'r': {NBYTES} bytes from offset {NBYTES} on reach past its {2 * NBYTES - 1} bytes"
            await client.unregister()
            # Nor does a refused request.
            assert open_files() == before + 1
    assert parses.count(raw) == 1
    assert open_files() == before


@on_loop
async def test_callers_with_the_same_head_use_their_own_regions(tmp_path: Path, parses: list[bytes]) -> None:
    raw = negative(0, NBYTES).SerializeToString()
    with shared_object(2 * NBYTES, owner="one") as first, shared_object(2 * NBYTES, owner="two") as second:
        async with serving(tmp_path, tokens=True) as (_, channel):
            owners: list[tuple[str, SharedObject]] = [("one", first), ("two", second)]
            infer = method(channel, "ModelInfer")

            def ask(name: str) -> Any:
                return infer(raw, metadata=(("authorization", f"Bearer {SECRETS[name]}"),))

            await Client(channel, "one").register("r", first.key, 0, 2 * NBYTES)
            for _ in range(2):
                await ask("one")
                assert await ask("two").code() is Code.NOT_FOUND
            await Client(channel, "two").register("r", second.key, 0, 2 * NBYTES)
            for seed in range(4):
                for n, (_, made) in enumerate(owners):
                    made.write(values(10 * n + seed).tobytes())
                for name, _ in owners:
                    await ask(name)
                for n, (_, made) in enumerate(owners):
                    assert np.array_equal(np.frombuffer(made.read(NBYTES, NBYTES), np.float32), -values(10 * n + seed))
            await Client(channel, "one").unregister()
            assert await ask("one").code() is Code.NOT_FOUND
            await ask("two")
    assert parses.count(raw) == 1


@on_loop
async def test_a_shrunk_object_is_an_error_for_the_next_request(tmp_path: Path, parses: list[bytes]) -> None:
    raw = negative(0, NBYTES).SerializeToString()
    gone = (Code.INVALID_ARGUMENT, "region 'r' is larger than its shared memory object, which has shrunk")
    for mapped in (False, True):
        with shared_object(2 * NBYTES) as made:
            async with serving(tmp_path / str(mapped), mapped=mapped) as (_, channel):
                await Client(channel).register("r", made.key, 0, 2 * NBYTES)
                for _ in range(2):
                    made.truncate(2 * NBYTES)
                    assert isinstance(await unary(channel, raw), pb.ModelInferResponse)
                    made.truncate(NBYTES - 1)
                    assert await unary(channel, raw) == gone
    assert parses.count(raw) == 2


@on_loop
async def test_a_remote_caller_uses_nothing_that_local_ones_have_used(tmp_path: Path) -> None:
    class Peer:
        principal = ""

        def __init__(self, peer: str) -> None:
            self.peer = lambda: peer

    raw = negative(0, NBYTES).SerializeToString()
    with shared_object(2 * NBYTES) as made:
        async with serving(tmp_path) as (parts, channel):
            await Client(channel).register("r", made.key, 0, 2 * NBYTES)
            for peer, allowed in 2 * [("ipv4:127.0.0.1:1", True), ("ipv4:10.0.0.7:1", False)]:
                recipient = FutureRecipient()
                parts.inference.begin(raw, wire.as_unary, CallContext(Peer(peer)), recipient)
                if allowed:
                    await recipient.future
                else:
                    with pytest.raises(NotAllowed):
                        await recipient.future
