"""A client process of test_sequence_ends: begins sequences over a stream, says so, and waits to be killed.

Usage: python -m tests.system.sequences_client TARGET COUNT
"""

import asyncio
import sys

from tests.system.state_models import add
from tests.system.wire import connect, method


async def main(target: str, count: str) -> None:
    async with connect(target) as channel:
        call = method(channel, "ModelStreamInfer")()
        for sequence in range(1, int(count) + 1):
            await call.write(add(1, sequence, start=True))
            answer = await call.read()
            assert not answer.error_message, answer.error_message
        print("begun", flush=True)
        await call.read()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
