"""A client process of test_echo: sends payloads that no other request has, and counts answers that are not theirs.

Usage: python -m tests.system.echo_client TARGET NUMBER REQUESTS unary|stream; prints
{"answered": ..., "mixed_up": ...}.
"""

import asyncio
import json
import sys
from collections import deque

import grpc

from inferd._pb import open_inference_pb2 as pb
from tests.system.wire import connect, echo, method

_IN_FLIGHT = 16


class Tally:
    """Compares answers with what was asked."""

    def __init__(self, client: int) -> None:
        self._client = client
        self.answered = 0
        self.mixed_up = 0

    def request(self, number: int) -> pb.ModelInferRequest:
        """Request ``number``: its words name it, and their count differs from its neighbours'."""
        words = [self._client, number, *(self._client * 1_000_003 + number * place for place in range(number % 7))]
        return echo(words, f"{self._client}-{number}")

    def compare(self, asked: pb.ModelInferRequest, answer: pb.ModelInferResponse) -> None:
        self.answered += 1
        seen = answer.id, list(answer.outputs[0].shape), answer.raw_output_contents[0]
        self.mixed_up += seen != (asked.id, list(asked.inputs[0].shape), asked.raw_input_contents[0])


async def unary(channel: grpc.aio.Channel, tally: Tally, requests: int) -> None:
    infer = method(channel, "ModelInfer")
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            asked = tally.request(number)
            tally.compare(asked, await infer(asked))

    await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))


async def stream(channel: grpc.aio.Channel, tally: Tally, requests: int) -> None:
    call = method(channel, "ModelStreamInfer")()
    asked: deque[pb.ModelInferRequest] = deque()
    for number in range(requests):
        if len(asked) == _IN_FLIGHT:
            tally.compare(asked.popleft(), (await call.read()).infer_response)
        asked.append(tally.request(number))
        await call.write(asked[-1])
    await call.done_writing()
    while asked:
        tally.compare(asked.popleft(), (await call.read()).infer_response)


async def main(target: str, client: str, requests: str, kind: str) -> None:
    tally = Tally(int(client))
    async with connect(target) as channel:
        await {"unary": unary, "stream": stream}[kind](channel, tally, int(requests))
    print(json.dumps({"answered": tally.answered, "mixed_up": tally.mixed_up}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
