"""System shared memory for requests: a region for the inputs, which are the same each time, and one for outputs."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from inferd._pb import open_inference_pb2 as pb
from inferd.bench.inputs import Feed
from inferd.bench.messages import lay_out, shm_request
from inferd.errors import InferdError
from inferd.rpc.client import InferenceClient
from inferd.rpc.rpc_client import CallFailed

_MOUNT = "/dev/shm"  # noqa: S108 - where Linux keeps it


class SharedMemoryTooSmall(InferdError):
    """There is less shared memory than the run needs. Going on would kill the process that writes there first."""


@contextmanager
def shared(
    client: InferenceClient,
    model: str,
    version: str,
    feeds: Sequence[Feed],
    outputs: Sequence[tuple[str, int]],
    slots: int,
) -> Iterator[list[pb.ModelInferRequest]]:
    """``slots`` requests, each with a place of its own for its ``outputs``, by name and size in bytes.

    The regions are created and registered, and removed afterwards. Raises SharedMemoryTooSmall, and CallFailed if the
    server refuses them.
    """
    # Servers reserve names that begin with their own.
    run = secrets.token_hex(6)
    given, region, first = f"bench-in-{run}", f"bench-out-{run}", 0
    inputs = lay_out(given, [len(f.data) for f in feeds])
    places = []
    for _ in range(slots):
        places.append(lay_out(region, [size for _, size in outputs], first))
        first = -(-max([first, *(p.end() for p in places[-1])]) // 64) * 64
    whole = max([p.end() for p in inputs], default=0) + first
    room = os.statvfs(_MOUNT)
    if whole > room.f_bavail * room.f_frsize:
        raise SharedMemoryTooSmall(f"{whole >> 20} MB of shared memory are needed, {_MOUNT} has less left")
    names = [name for name, _ in outputs]
    with (
        _registered(client, given, max([p.end() for p in inputs], default=0)) as memory,
        _registered(client, region, first),
    ):
        for feed, place in zip(feeds, inputs, strict=True):
            np.ndarray(place.nbytes, np.uint8, memory.buf, place.offset)[:] = np.frombuffer(feed.data, np.uint8)
        yield [shm_request(model, version, feeds, inputs, list(zip(names, p, strict=True))) for p in places]


@contextmanager
def _registered(client: InferenceClient, name: str, nbytes: int) -> Iterator[SharedMemory]:
    memory = SharedMemory(name, create=True, size=max(1, nbytes))
    try:
        client.register_region(name, f"/{memory.name}", max(1, nbytes))
        try:
            yield memory
        finally:
            # If the server has ended, so has its registration.
            with suppress(CallFailed):
                client.unregister_region(name)
    finally:
        memory.close()
        memory.unlink()
