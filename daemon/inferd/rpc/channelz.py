"""gRPC's channelz, without the paths of sockets in the file system."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_channelz.v1 import channelz

from inferd.disclosure import without_host_paths

_METHODS = ("GetTopChannels", "GetServers", "GetServer", "GetServerSockets", "GetChannel", "GetSubchannel", "GetSocket")


class Channelz(channelz.aio.ChannelzServicer):  # type: ignore[misc]  # grpc ships no types
    """Answers like gRPC's own service, with each file reduced to its own name."""

    def __init__(self) -> None:
        for name in _METHODS:
            setattr(self, name, _cleaned(getattr(super(), name)))


def _cleaned(ask: Callable[[Any, grpc.aio.ServicerContext], Awaitable[Message]]) -> Any:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Message:
        message = await ask(request, context)
        _clean(message)
        return message

    return answer


def _clean(message: Message) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                _clean(one)
        elif field.type == field.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, without_host_paths(value))
