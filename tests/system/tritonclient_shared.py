"""Puts tensors into system shared memory with tritonclient, infers, and prints what it found there, as JSON.

    python tritonclient_shared.py ADDRESS sync|aio

The model ``sums`` answers left + right and left - right, ``words`` gives back its strings, and ``wide`` its input.
"""

import asyncio
import inspect
import json
import os
import sys

import numpy as np
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio
import tritonclient.utils.shared_memory as shm
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

ROWS = np.arange(32768, dtype=np.float32).reshape(16384, 2)


class Client:
    """The sync and the aio client alike."""

    def __init__(self, address, kind):
        self.client = {"sync": sync, "aio": aio}[kind].InferenceServerClient(address)

    async def __call__(self, method, *arguments, **named):
        try:
            answer = getattr(self.client, method)(*arguments, **named)
            return await answer if inspect.isawaitable(answer) else answer
        except InferenceServerException as error:
            return {"code": (error.status() or "").removeprefix("StatusCode."), "message": error.message()}

    async def names(self):
        status = MessageToDict(await self("get_system_shared_memory_status"))
        return sorted(status.get("regions", {}))


def placed(tensor, *where):
    tensor.set_shared_memory(*where)
    return tensor


async def sums(client, name, size):
    """Inputs one after the other in one region, outputs in another; twice, with other values."""
    given = shm.create_shared_memory_region(f"{name}-in", f"/{name}-in", 2 * size)
    taken = shm.create_shared_memory_region(f"{name}-out", f"/{name}-out", 2 * size)
    await client("register_system_shared_memory", f"{name}-in", f"/{name}-in", 2 * size)
    await client("register_system_shared_memory", f"{name}-out", f"/{name}-out", 2 * size)
    registered = await client.names()
    rows = size // 8
    found = []
    for factor in (1, 3):
        left, right = factor * ROWS[:rows], ROWS[-rows:]
        shm.set_shared_memory_region(given, [left, right])
        inputs = [
            placed(sync.InferInput("left", left.shape, "FP32"), f"{name}-in", size),
            placed(sync.InferInput("right", right.shape, "FP32"), f"{name}-in", size, size),
        ]
        outputs = [
            placed(sync.InferRequestedOutput("difference"), f"{name}-out", size, size),
            placed(sync.InferRequestedOutput("sum"), f"{name}-out", size),
        ]
        result = await client("infer", "sums", inputs, outputs=outputs)
        total = shm.get_contents_as_numpy(taken, np.float32, left.shape)
        difference = shm.get_contents_as_numpy(taken, np.float32, left.shape, size)
        found.append(bool(np.array_equal(total, left + right) and np.array_equal(difference, left - right)))
        # One of each in shared memory, the others along with the message.
        inputs[1] = sync.InferInput("right", right.shape, "FP32").set_data_from_numpy(right)
        outputs[0] = sync.InferRequestedOutput("difference")
        mixed = await client("infer", "sums", inputs, outputs=outputs)
        found.append(bool(np.array_equal(mixed.as_numpy("difference"), left - right)))
    shown = [MessageToDict(result.get_output(n)) for n in ("difference", "sum")]
    await client("unregister_system_shared_memory", f"{name}-in")
    one_left = await client.names()
    gone = await client("infer", "sums", inputs)
    await client("unregister_system_shared_memory")
    shm.destroy_shared_memory_region(given)
    shm.destroy_shared_memory_region(taken)
    return {
        "registered": registered,
        "found": found,
        "shown": shown,
        "raw": [len(raw) for raw in result.get_response().raw_output_contents],
        "one left": one_left,
        "gone": gone,
        "none left": await client.names(),
    }


async def words(client, name):
    array = np.array([b"a", b"", "ä€".encode(), b"longer than the others"], dtype=object)
    flat = serialize_byte_tensor(array)
    size = len(flat.item())
    region = shm.create_shared_memory_region(name, f"/{name}", 1000)
    await client("register_system_shared_memory", name, f"/{name}", 1000)
    shm.set_shared_memory_region(region, [flat])
    given = placed(sync.InferInput("x", array.shape, "BYTES"), name, size)
    result = await client("infer", "words", [given], outputs=[placed(sync.InferRequestedOutput("x"), name, 500, 500)])
    back = shm.get_contents_as_numpy(region, np.object_, array.shape, 500)
    small = await client(
        "infer", "words", [given], outputs=[placed(sync.InferRequestedOutput("x"), name, size - 1, 500)]
    )
    await client("unregister_system_shared_memory", name)
    shm.destroy_shared_memory_region(region)
    return {
        "same": back.tolist() == array.tolist(),
        "size": size,
        "shown": MessageToDict(result.get_output("x")),
        "small": small,
    }


async def main(address, kind):
    client, name = Client(address, kind), f"tritonclient-{os.getpid()}"
    print(
        json.dumps(
            {
                "small": await sums(client, name, 64),
                "large": await sums(client, name, 131072),
                "words": await words(client, name),
            }
        )
    )
    if (closing := client.client.close()) is not None:
        await closing


asyncio.run(main(*sys.argv[1:]))
