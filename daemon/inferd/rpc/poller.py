"""The thread on which grpc.aio waits for events, and how it gets a CPU.

It wakes four times for each call, only to tell the event loop's thread. On a machine with CPUs to spare that costs
little. Where it wakes on the CPU that the loop runs on, the kernel puts the loop aside for it, four times a call: a
tenth of all that a call costs (docs/decisions/0016). As a batch thread it takes a free CPU as ever, and waits for its
turn where there is none.
"""

import os
import threading

import structlog

log = structlog.get_logger("inferd.rpc")

# What Python calls a thread that runs that method and was given no name; there is one for each process.
_NAME = "(_poll_wrapper)"


def set_poller_batch_scheduling() -> None:
    """Have gRPC's poller put no other thread aside. Once there is a server; where the system does not let us, or gRPC
    has no such thread any more, all stays as it was."""
    for thread in threading.enumerate():
        if thread.name.endswith(_NAME) and thread.native_id is not None:
            try:
                os.sched_setscheduler(thread.native_id, os.SCHED_BATCH, os.sched_param(0))
            except OSError as error:
                log.info("gRPC's poller keeps its scheduling policy", problem=error.strerror)
