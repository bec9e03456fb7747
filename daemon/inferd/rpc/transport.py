"""TLS for the gRPC port, from credentials that may change while it listens."""

import grpc

from inferd.security.certificates import Certificate
from inferd.security.credentials import Credentials


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials | None:
    """What to listen with; None where the port speaks in the clear.

    gRPC asks before each handshake which certificate to show, so a new one goes to new connections and
    those there are go on.
    """
    first = credentials.certificate
    if first is None:
        return None
    shown = first

    def newer() -> grpc.ServerCertificateConfiguration | None:
        """The certificate where it is another than last time. gRPC asks on threads of its own, holding the GIL."""
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
