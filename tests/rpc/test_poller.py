"""The thread that gRPC polls on: found by Python's name for it, which a new release may change."""

import os
import threading

import grpc

from inferd.rpc.poller import set_poller_batch_scheduling
from tests.event_loop import on_loop


def policies() -> list[int]:
    """The threads other than this one, by their kernel ids."""
    ids = {thread.native_id for thread in threading.enumerate()} - {threading.get_native_id(), None}
    return [os.sched_getscheduler(number) for number in ids if number is not None]


@on_loop
async def test_grpcs_poller_alone_is_a_batch_thread_once_there_is_a_server() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    set_poller_batch_scheduling()
    assert policies().count(os.SCHED_BATCH) == 1
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
    await server.stop(None)
