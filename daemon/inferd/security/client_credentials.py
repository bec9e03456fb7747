"""The credentials with which a command calls a daemon, and with which it verifies the daemon."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from inferd.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """``ca`` is a PEM file of the CAs trusted to sign the daemon's certificate; without it, calls use no TLS.
    ``server_name`` is the name expected in that certificate if it is not the address's. ``certificate`` and ``key`` are
    the caller's own, PEM files; ``token`` is its secret. Empty means none."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    token: str = ""

    @property
    def authorization(self) -> str:
        """The value of that metadata key; empty for none."""
        return f"Bearer {self.token}" if self.token else ""

    def context(self) -> ssl.SSLContext | None:
        """For a Python client; None without TLS. Raises ConfigurationError if a file can't be used."""
        if self.ca is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise _unusable(self.ca, error) from None
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
            except OSError as error:
                raise _unusable(self.certificate, error) from None
        return context

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """CAs, key and certificate. Raises ConfigurationError as :meth:`context` does."""
        # gRPC, which gets these, would only say that it could not connect.
        self.context()
        read = [None if file is None else file.read_bytes() for file in (self.ca, self.key, self.certificate)]
        return read[0], read[1], read[2]


NO_CREDENTIALS = ClientCredentials()


def _unusable(file: Path, error: OSError) -> ConfigurationError:
    problem = "contains no certificate, or no matching key" if isinstance(error, ssl.SSLError) else error.strerror
    return ConfigurationError(str(file), "", problem or "can't be read")
