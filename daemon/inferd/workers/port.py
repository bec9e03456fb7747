"""Holds a port that several processes share."""

import socket

from inferd.config.daemon import split_host_port
from inferd.errors import ConfigurationError


class HeldPort:
    """``bind``'s port, or a free one for port 0, held for the workers by a socket that does not listen.

    Workers may come and go, and no other process gets the port meanwhile. Raises ConfigurationError if it is in use;
    with ``shared`` another daemon of this user may use it, if that shares it too.
    """

    def __init__(self, bind: str, *, shared: bool) -> None:
        host, port = split_host_port(bind)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            if port and not shared:
                # Only a bind without SO_REUSEPORT detects another listener.
                with socket.socket(family, socket.SOCK_STREAM) as alone:
                    alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    alone.bind(address)
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind(address)
        except OSError as error:
            raise ConfigurationError("grpc_bind", "", f"can't listen on {bind}: {error.strerror}") from None
        self.bind = f"{bind.rpartition(':')[0]}:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        """Release the port."""
        self._socket.close()
