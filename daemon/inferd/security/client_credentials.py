"""The credentials with which a command calls a daemon, and with which it verifies the daemon."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from inferd import regular_file
from inferd.errors import ConfigurationError
from inferd.security.certificates import in_memory, load_chain


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
        ca, key, certificate = self._read()
        if self.ca is None or ca is None:
            return None
        try:
            with in_memory(ca) as file:
                context = ssl.create_default_context(cafile=file)
        except OSError as error:
            raise _unusable(self.ca, error) from None
        if self.certificate is not None and certificate is not None:
            try:
                load_chain(context, certificate, key)
            except OSError as error:
                raise _unusable(self.certificate, error) from None
        return context

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """CAs, key and certificate. Raises ConfigurationError as :meth:`context` does."""
        # gRPC, which gets these, would only say that it could not connect.
        self.context()
        return self._read()

    def _read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        return _content(self.ca), _content(self.key), _content(self.certificate)


NO_CREDENTIALS = ClientCredentials()


def _content(file: Path | None) -> bytes | None:
    try:
        return None if file is None else regular_file.read(file)
    except OSError as error:
        raise _unusable(file or Path(), error) from None


def _unusable(file: Path, error: OSError) -> ConfigurationError:
    problem = "contains no certificate, or no matching key" if isinstance(error, ssl.SSLError) else error.strerror
    return ConfigurationError(str(file), "", problem or "can't be read")
