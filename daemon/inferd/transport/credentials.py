"""TLS for the gRPC port, from credentials that may change while it listens."""

import grpc

from inferd.security.certificates import Certificate
from inferd.security.credentials import Credentials


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials | None:
    """The credentials to listen with; None without TLS.

    gRPC asks for the certificate before each handshake, so new connections get a new one and
    existing ones continue.
    """
    first = credentials.certificate
    if first is None:
        return None
    shown = first

    def newer() -> grpc.ServerCertificateConfiguration | None:
        """The certificate if it has changed since the last call. gRPC calls on its own threads, holding the GIL."""
        nonlocal shown
        now = credentials.certificate
        if now is None or now is shown:
            return None
        shown = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first), newer, require_client_authentication=credentials.verifies_clients
    )


def _configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)], certificate.client_ca)
