"""Unary calls of one service at one server, for inferd's own commands."""

from typing import Any

import grpc
from google.protobuf.message import Message

from inferd.errors import InferdError, one_line
from inferd.security.client_credentials import NO_CREDENTIALS, ClientCredentials
from inferd.security.tls_mismatch import tls_mismatch

_CHANNEL_OPTIONS = [
    # A proxy variable in the environment is not meant for a server named by address.
    ("grpc.enable_http_proxy", 0),
    # The caller chose the size of the response; grpc would cut it off at 4 MiB.
    ("grpc.max_receive_message_length", -1),
]


class CallFailed(InferdError):
    """The server, or the connection to it, failed a call: ``code`` is gRPC's name for why, such as NOT_FOUND."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {one_line(message, 1000)}")


class TlsMismatch(CallFailed):
    """Only one of the server and the call uses TLS."""


class RpcClient:
    """Calls ``service`` at ``target``, HOST:PORT. Connects on the first call.

    ``timeout`` is in seconds and becomes each call's deadline.
    """

    def __init__(
        self, target: str, service: str, *, timeout: float, credentials: ClientCredentials = NO_CREDENTIALS
    ) -> None:
        """Raises ConfigurationError if a file of ``credentials`` can't be used."""
        self._target, self._tls = target, credentials.ca is not None
        self._service = service
        self._timeout = timeout
        self._metadata = (("authorization", credentials.authorization),) if credentials.token else ()
        self._channel = _channel(target, credentials)

    def close(self) -> None:
        """Close the connection; a call still running ends as CANCELLED."""
        self._channel.close()

    def call(self, method: str, request: Message, answer: type[Any]) -> Any:
        """The response, of type ``answer``. Raises CallFailed."""
        call = self._channel.unary_unary(
            f"/{self._service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return call(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            # gRPC's own message is about sockets and handshakes.
            unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
            if unavailable and (mismatch := tls_mismatch(self._target, tls=self._tls)):
                raise TlsMismatch(error.code().name, mismatch) from None
            raise CallFailed(error.code().name, error.details() or "") from None


def _channel(target: str, credentials: ClientCredentials) -> grpc.Channel:
    if credentials.ca is None:
        return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    name = [("grpc.ssl_target_name_override", credentials.server_name)] if credentials.server_name else []
    return grpc.secure_channel(
        target, grpc.ssl_channel_credentials(*credentials.pem()), options=[*_CHANNEL_OPTIONS, *name]
    )
