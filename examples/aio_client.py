"""Sends 32 requests at once from one event loop, and retries refused ones when inferd says so.

    pip install grpcio grpcio-tools numpy
    make serve                                     # in another terminal
    python examples/aio_client.py [HOST:PORT]

Needs a daemon with the demo models, such as that of `make serve`.
"""

import asyncio
import sys
from collections import Counter

import grpc
import numpy as np
from protocol import messages, services


async def ask(stub, seed: int, attempts: int = 5) -> str:
    """One request; its outcome, OK or a gRPC code."""
    rows = np.random.default_rng(seed).integers(0, 256, (1, 2048), np.int32)
    request = messages.ModelInferRequest(model_name="magika", id=str(seed))
    request.inputs.add(name="bytes", datatype="INT32", shape=rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    code = ""
    for _ in range(attempts):
        try:
            answer = await stub.ModelInfer(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            wait = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
            if wait is None:
                return code
            await asyncio.sleep(int(wait) / 1000)
        else:
            assert answer.id == str(seed)
            return "OK"
    return code


async def main(target: str = "127.0.0.1:8001") -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        outcomes = await asyncio.gather(*(ask(stub, seed) for seed in range(32)))
    print(dict(Counter(outcomes)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
