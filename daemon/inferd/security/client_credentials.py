"""The credentials with which a command calls a daemon, and by which it verifies the daemon."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from inferd.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """``ca`` is the PEM file of the CAs that the daemon's certificate may be of; without one the call is made in the
    clear. ``server_name`` is the name which that certificate has to have, where it is not that of the address.
    ``certificate`` and ``key`` are the caller's own, PEM files; ``token`` is its secret. All are empty for none."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    token: str = ""

    @property
    def authorization(self) -> str:
        """The text to send after that key; empty for none."""
        return f"Bearer {self.token}" if self.token else ""

    def context(self) -> ssl.SSLContext | None:
        """For a client of Python's; None in the clear. Raises ConfigurationError where a file can't be used."""
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
        # The library that is given them says no more than that it could not connect.
        self.context()
        read = [None if file is None else file.read_bytes() for file in (self.ca, self.key, self.certificate)]
        return read[0], read[1], read[2]


NO_CREDENTIALS = ClientCredentials()


def _unusable(file: Path, error: OSError) -> ConfigurationError:
    problem = "holds no certificate, or no key that fits" if isinstance(error, ssl.SSLError) else error.strerror
    return ConfigurationError(str(file), "", problem or "can't be read")
