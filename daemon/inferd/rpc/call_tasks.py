"""Handlers that are coroutines: all RPCs but the inferences, which do without a task for each call."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import grpc
import structlog

from inferd.errors import Draining, InferdError, InternalFault, InvalidRequest
from inferd.rpc import status
from inferd.transport.call import ServerCall

log = structlog.get_logger("inferd.rpc")

# Bytes of a message for any of these. The longest have a few names.
MAX_MESSAGE = 64 << 10

Handler = Callable[[ServerCall], None]
Unary = Callable[[bytes, ServerCall], Awaitable[bytes]]
Run = Callable[[ServerCall], Awaitable[None]]


class CallTasks:
    """Makes handlers of coroutines, and runs each call as a task, which ends when its client leaves.

    What a coroutine raises is the call's error, by the table of errors.
    """

    def __init__(self) -> None:
        self._running: dict[ServerCall, asyncio.Task[None]] = {}

    def unary(self, answer: Unary) -> Handler:
        """A handler that answers one message with what ``answer`` returns."""

        def received(call: ServerCall, raw: bytes | None) -> None:
            if raw is None:
                # Its client has sent all that it wanted to, or has left; then this reaches no one.
                status.fail(call, InvalidRequest("", "the call ended without a message"))
            elif len(raw) > MAX_MESSAGE:
                status.fail(call, _too_large(call, raw))
            else:
                self._start(call, partial(_respond, answer, raw, call))

        return lambda call: call.receive(received)

    def unread(self, answer: Unary) -> Handler:
        """Likewise for a message without fields, which is not received."""
        return lambda call: self._start(call, partial(_respond, answer, b"", call))

    def stream(self, run: Run) -> Handler:
        """A handler that leaves it to ``run`` what to receive and to send."""
        return lambda call: self._start(call, partial(_finish, run, call))

    def terminate(self) -> None:
        """End the calls that are open with UNAVAILABLE. A health watch, for one, lasts as long as its client likes."""
        for call, task in list(self._running.items()):
            status.fail(call, Draining())
            task.cancel()

    def _start(self, call: ServerCall, answering: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(_guarded(call, answering))
        self._running[call] = task
        task.add_done_callback(lambda _: self._running.pop(call))
        call.watch(task.cancel)


async def read(call: ServerCall) -> bytes | None:
    """The next message of ``call``, None if it sends no more. Raises InvalidRequest if it is too large."""
    raw = await call.read()
    if raw is not None and len(raw) > MAX_MESSAGE:
        raise _too_large(call, raw)
    return raw


def _too_large(call: ServerCall, raw: bytes) -> InvalidRequest:
    return InvalidRequest("", f"the message has {len(raw)} bytes; {call.method[1:]} takes up to {MAX_MESSAGE}")


async def _respond(answer: Unary, raw: bytes, call: ServerCall) -> None:
    call.respond(await answer(raw, call))


async def _finish(run: Run, call: ServerCall) -> None:
    await run(call)
    call.finish()


async def _guarded(call: ServerCall, answering: Callable[[], Awaitable[None]]) -> None:
    try:
        await answering()
    except InferdError as error:
        status.fail(call, error)
    except grpc.aio.AioRpcError as error:
        # Another worker's, whose answer this is.
        call.fail(error.code().value[0], error.details() or "")
    except Exception:
        log.exception("call failed unexpectedly", method=call.method)
        status.fail(call, InternalFault())
