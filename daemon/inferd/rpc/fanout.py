"""Passes calls on between workers. A call reaches one worker, but a change must reach all of them, and counts must
cover all of them."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Self

import grpc
import structlog

from inferd._pb import open_inference_pb2 as pb
from inferd.lifecycle import Retirement
from inferd.rpc import statistics
from inferd.rpc.gate import PRINCIPAL_KEY, SECRET_KEY, SERVICE, TUNER_SERVICE, is_sibling
from inferd.transport.call import ServerCall
from inferd.workers.worker_identity import WorkerIdentity

log = structlog.get_logger("inferd.rpc")


class FanoutScope(Enum):
    """The workers that a call is for: all; the first alone, for actions to do once; or all that can
    answer, with their responses summed."""

    EVERY = "every"
    FIRST = "first"
    SUMMED = "summed"


FANOUT_SCOPES: dict[str, FanoutScope] = {
    f"/{SERVICE}/RepositoryModelLoad": FanoutScope.EVERY,
    f"/{SERVICE}/RepositoryModelUnload": FanoutScope.EVERY,
    f"/{SERVICE}/SystemSharedMemoryRegister": FanoutScope.EVERY,
    f"/{SERVICE}/SystemSharedMemoryUnregister": FanoutScope.EVERY,
    f"/{SERVICE}/ModelStatistics": FanoutScope.SUMMED,
    # The first worker tunes for all; the others load what it stores.
    **{
        f"/{TUNER_SERVICE}/{name}": FanoutScope.FIRST
        for name in ("Status", "Explain", "Export", "Pin", "Rollback", "Tune")
    },
}

# Seconds that another worker may take: to load a model, for one action, for what it has counted. One that hangs is
# replaced sooner than a load ends, which ends its calls.
_QUICK = 2.0
_LIMITS = {FanoutScope.EVERY: 600.0, FanoutScope.FIRST: 60.0, FanoutScope.SUMMED: _QUICK}

_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]

Answer = Callable[[bytes, ServerCall], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call to pass on: its message, the seconds that are left for it, its caller's proven name, and whether another
    worker's limit is what leaves no more."""

    method: str
    raw: bytes
    seconds: float
    principal: str = ""
    limited: bool = True

    @classmethod
    def by(cls, call: ServerCall, method: str, raw: bytes) -> Self:
        """What ``call`` asks, as of now, in the time that it has and that another worker may take."""
        limit, left = _LIMITS[FANOUT_SCOPES[method]], call.time_remaining()
        limited = left is None or left > limit
        return cls(method, raw, limit if limited or left is None else left, call.principal, limited)


class WorkerFanout:
    """Passes calls on between the workers of one server, over sockets in their folder.

    A worker that does not listen is skipped: a starting worker adopts the state of the others, see :meth:`unloaded`.
    """

    def __init__(self, identity: WorkerIdentity) -> None:
        self._identity = identity
        self.secret = identity.secret
        self.address = f"unix:{identity.socket('grpc')}"
        self._loads: set[asyncio.Task[None]] = set()

    def wrap(self, method: str, answer: Answer) -> Answer:
        """``answer`` extended to all the workers that ``method`` is for."""
        scope = FANOUT_SCOPES.get(method)
        if scope is None or (scope is FanoutScope.FIRST and self._identity.first):
            return answer

        async def fan_out(raw: bytes, call: ServerCall) -> bytes:
            if is_sibling(call.metadata, self._identity.secret):
                return await answer(raw, call)
            if scope is FanoutScope.FIRST:
                return await self._ask(0, _Asked.by(call, method, raw))
            # A call that this worker refuses reaches no other.
            own = await answer(raw, call)
            asked = _Asked.by(call, method, raw)
            if scope is FanoutScope.SUMMED:
                return statistics.summed([own, *await self._answers_of_others(asked)])
            await self._require_others(asked)
            return own

        return fan_out

    async def unloaded(self) -> set[str]:
        """The models that the other workers were told to unload, as far as any of them answers."""
        for index in self._identity.others:
            if not self._listens(index):
                continue
            with suppress(grpc.aio.AioRpcError):
                answer = await self._ask(index, _Asked(f"/{SERVICE}/RepositoryIndex", b"", _QUICK))
                models = pb.RepositoryIndexResponse.FromString(answer).models
                kept = {model.name for model in models if model.reason != Retirement.UNLOADED.value}
                return {model.name for model in models} - kept
        return set()

    def load(self, model: str) -> None:
        """Make the others load ``model`` again, soon: it has a new profile."""
        raw = pb.RepositoryModelLoadRequest(model_name=model).SerializeToString()
        task = asyncio.ensure_future(self._load(model, raw))
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _load(self, model: str, raw: bytes) -> None:
        try:
            method = f"/{SERVICE}/RepositoryModelLoad"
            await self._require_others(_Asked(method, raw, _LIMITS[FANOUT_SCOPES[method]]))
        except grpc.aio.AioRpcError as error:
            log.warning("new profile not loaded by all workers", model=model, problem=error.details())

    async def _require_others(self, asked: _Asked) -> None:
        """Make all others answer the call too; raises the first AioRpcError, once all have ended."""
        for answer in await self._ask_others(asked):
            if isinstance(answer, BaseException):
                raise answer

    async def _answers_of_others(self, asked: _Asked) -> list[bytes]:
        """The responses of all others that have one."""
        answers = await self._ask_others(asked)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, grpc.aio.AioRpcError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def _ask_others(self, asked: _Asked) -> list[bytes | BaseException]:
        listening = [index for index in self._identity.others if self._listens(index)]
        return await asyncio.gather(*(self._ask(index, asked) for index in listening), return_exceptions=True)

    async def _ask(self, index: int, asked: _Asked) -> bytes:
        metadata = ((SECRET_KEY, self._identity.secret), (PRINCIPAL_KEY, asked.principal))
        # A new channel each time: one that is kept would not notice at once that a worker was replaced.
        address = f"unix:{self._identity.socket('grpc', index)}"
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            try:
                answer: bytes = await channel.unary_unary(asked.method)(
                    asked.raw, timeout=asked.seconds, metadata=metadata
                )
            except grpc.aio.AioRpcError as error:
                code, why = error.code(), error.details() if self._listens(index) else "not serving"
                if asked.limited and code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    code, why = grpc.StatusCode.UNAVAILABLE, f"no answer within {asked.seconds:g} s"
                raise grpc.aio.AioRpcError(
                    code, error.initial_metadata(), error.trailing_metadata(), details=f"worker {index}: {why}"
                ) from None
        return answer

    def _listens(self, index: int) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            return probe.connect_ex(str(self._identity.socket("grpc", index))) == 0
