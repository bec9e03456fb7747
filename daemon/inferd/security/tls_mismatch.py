"""Why a client can't talk to a port: one of them uses TLS and the other does not."""

import socket
import ssl
from contextlib import suppress

_PATIENCE = 2.0
# OpenSSL's reasons for a response that is not TLS at all.
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE"}


def tls_mismatch(address: str, *, tls: bool) -> str:
    """A sentence for a client that could not talk to ``address``, HOST:PORT, with ``tls`` or without; empty if that
    was not the cause. Connects to find out, which takes a few seconds at most."""
    spoken = speaks_tls(address)
    if spoken is True and not tls:
        return f"{address} accepts only TLS connections; name the CA of its certificate with --ca FILE"
    if spoken is False and tls:
        return f"{address} does not use TLS; leave --ca out"
    return ""


def speaks_tls(address: str) -> bool | None:
    """Whether ``address``, HOST:PORT, uses TLS; None if it responds neither way."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return None
    place = (host.strip("[]"), int(port))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The connection only shows whether there is TLS; nothing is sent over it.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(place, _PATIENCE) as connection, context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return True
        if error.reason in _NO_TLS:
            return False
    except OSError:
        pass
    # An HTTP server may wait for the end of a line, which a TLS greeting does not contain.
    with suppress(OSError), socket.create_connection(place, _PATIENCE) as connection:
        connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        return False if connection.recv(5) == b"HTTP/" else None
    return None
