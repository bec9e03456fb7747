"""grpc.channelz.v1: what gRPC knows about its connections, without the paths of files on this machine."""

from collections.abc import Callable
from functools import partial

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz, channelz_pb2

from inferd.disclosure import without_host_paths
from inferd.rpc import codec
from inferd.rpc.call_tasks import CallTasks, Handler
from inferd.transport.call import ServerCall

_SERVICE = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
SERVICE: str = _SERVICE.full_name


def handlers(tasks: CallTasks) -> dict[str, Handler]:
    """The RPCs of the service by their names, run by ``tasks``: gRPC's own, with each file reduced to its name."""
    servicer = channelz.ChannelzServicer()
    return {m.name: tasks.unary(partial(_answer, m, getattr(servicer, m.name))) for m in _SERVICE.methods}


class _Context:
    """What the library's methods ask of a context: to take the error of a call."""

    code: grpc.StatusCode | None = None
    details = ""

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


async def _answer(
    method: MethodDescriptor, ask: Callable[[Message, _Context], Message], raw: bytes, call: ServerCall
) -> bytes:
    context = _Context()
    message = ask(codec.parse(raw, GetMessageClass(method.input_type)), context)
    if context.code is not None:
        call.fail(context.code.value[0], context.details)
        return b""
    _clean(message)
    return message.SerializeToString()


def _clean(message: Message) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                _clean(one)
        elif field.type == field.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, without_host_paths(value))
