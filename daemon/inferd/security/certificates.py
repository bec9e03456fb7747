"""Reads a TLS port's certificate, its key and the CAs of its clients, and checks that they work together."""

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inferd import regular_file
from inferd.errors import ConfigurationError, one_line

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

# Tags of ASN.1, the encoding of certificates (X.690, RFC 5280).
_UTC_TIME, _VERSION = 0x17, 0xA0


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files: the certificate with its intermediates, its key, and the CAs of clients if clients are to be
    verified."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *([] if self.client_ca is None else [self.client_ca]))


@dataclass(frozen=True, slots=True)
class Certificate:
    """The contents of the files, PEM; ``expires`` in seconds since 1970. ``context`` is the same for a Python server:
    with a ``client_ca`` it asks clients for a certificate, and accepts those that present none."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: float
    context: ssl.SSLContext


def read(files: CertificateFiles) -> Certificate:
    """Read ``files``. Raises ConfigurationError, for example if key and certificate don't match."""
    contents = _contents(files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        load_chain(context, contents[0], contents[1])
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(str(files.key), "", f"not the key of {files.certificate}: {_reason(error)}") from None
    except OSError as error:
        raise ConfigurationError(str(files.certificate), "", error.strerror or "can't be read") from None
    client_ca = contents[2] if files.client_ca is not None else None
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ConfigurationError(str(files.client_ca), "", f"contains no CA: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_OPTIONAL
    try:
        expires = not_after(contents[0])
    except (ValueError, IndexError):
        raise ConfigurationError(str(files.certificate), "", "its expiry date can't be read") from None
    return Certificate(contents[0], contents[1], client_ca, expires, context)


def _contents(files: CertificateFiles) -> list[bytes]:
    found = []
    for path in files.paths:
        try:
            found.append(regular_file.read(path))
        except OSError as error:
            raise ConfigurationError(str(path), "", error.strerror or "can't be read") from None
    return found


def load_chain(context: ssl.SSLContext, certificate: bytes, key: bytes | None) -> None:
    """Give ``context`` the PEM ``certificate`` and its ``key``, which may be in the same file (None). Raises OSError,
    of which SSLError is one, or ValueError."""
    with in_memory(certificate) as chain, in_memory(certificate if key is None else key) as key_file:
        # OpenSSL would ask for a key's password at the terminal, which a daemon does not have.
        context.load_cert_chain(chain, key_file, password=lambda: "")


@contextmanager
def in_memory(content: bytes) -> Iterator[str]:
    """The path of a file in memory with ``content``: OpenSSL takes files alone, and reads any kind, of any size."""
    with open(os.memfd_create("inferd-pem", os.MFD_CLOEXEC), "wb") as stream:
        stream.write(content)
        stream.flush()
        yield f"/proc/self/fd/{stream.fileno()}"


def _reason(error: Exception) -> str:
    return one_line((isinstance(error, ssl.SSLError) and error.reason) or "not in the form of PEM", 100)


def not_after(chain: bytes) -> float:
    """When the first certificate of the PEM ``chain`` expires, in seconds since 1970. Raises ValueError or IndexError
    if it is not a certificate. Python's ssl module only reads this from a peer's certificate."""
    if (first := _PEM.search(chain)) is None:
        raise ValueError("no certificate")
    (_, certificate), *_ = _elements(ssl.PEM_cert_to_DER_cert(first[0].decode("ascii")))
    (_, signed), *_ = _elements(certificate)
    fields = [content for tag, content in _elements(signed) if tag != _VERSION]
    # Skip the serial number, the algorithm and the issuer.
    _, (tag, moment) = _elements(fields[3])
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    # strptime reads two-digit years up to 68 as this century's, RFC 5280 up to 49.
    found = datetime.strptime(moment.decode("ascii"), form).replace(tzinfo=UTC)
    if tag == _UTC_TIME and found.year >= 2050:
        found = found.replace(year=found.year - 100)
    return found.timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element in ``der``."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size], "big")
            at += size
        yield tag, der[at : at + length]
        at += length


def names_of(peer: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a verified certificate, in the form of Python's ssl module: its subject alternative names or, if it
    has none, its common name, as gRPC does."""
    if alternative := tuple(str(value) for _, value in peer.get("subjectAltName", ())):
        return alternative
    return tuple(value for part in peer.get("subject", ()) for key, value in part if key == "commonName")
