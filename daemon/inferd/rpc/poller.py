"""The thread on which grpc.aio waits for events, and how it gets a CPU.

It wakes four times for each call, only to notify the event loop's thread. On a machine with idle CPUs that costs
little. If it wakes on the CPU that the loop runs on, the kernel preempts the loop for it, four times a call: a
tenth of all that a call costs (docs/decisions/0016). As a batch thread it still takes a free CPU at once, and waits for
its turn if there is none.
"""

import os
import threading

import structlog

log = structlog.get_logger("inferd.rpc")

# Python's name for an unnamed thread that runs that method; there is one for each process.
_NAME = "(_poll_wrapper)"


def set_poller_batch_scheduling() -> None:
    """Keep gRPC's poller from preempting other threads. Call it once there is a server; if the system does not permit
    it, or gRPC no longer has such a thread, nothing changes."""
    for thread in threading.enumerate():
        if thread.name.endswith(_NAME) and thread.native_id is not None:
            try:
                os.sched_setscheduler(thread.native_id, os.SCHED_BATCH, os.sched_param(0))
            except OSError as error:
                log.info("poller's scheduling policy unchanged", problem=error.strerror)
