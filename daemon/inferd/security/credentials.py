"""The certificate and the tokens in force; a thread of its own watches their files."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Self

from inferd.config import tokens
from inferd.config.daemon import Settings
from inferd.security import certificates
from inferd.security.authorisation import Authority
from inferd.security.certificates import Certificate, CertificateFiles
from inferd.security.denied_calls import DeniedCalls
from inferd.security.watched_file import WatchedFile

# How soon a change on disk is noticed, in seconds.
_EVERY = 1.0


class Credentials:
    """The credentials of both ports. Each call and each new connection reads them, so a change applies at once."""

    def __init__(self, files: CertificateFiles | None = None, tokens_file: Path | None = None) -> None:
        """Raises ConfigurationError if a file can't be used."""
        self.denied_calls = DeniedCalls()
        self._files = files
        self._certificate = files and WatchedFile("certificate", files.paths, lambda: certificates.read(files))
        self._tokens = tokens_file and WatchedFile("tokens", [tokens_file], lambda: Authority(tokens.read(tokens_file)))
        self._anyone_verified = Authority(None) if self.verifies_clients else None
        self._asked, self._stopped = Event(), False
        self._thread = Thread(target=self._watch, name="credentials", daemon=True)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Certificate and tokens from the files that ``settings`` name. Raises ConfigurationError."""
        certificate = None
        if settings.tls_cert:
            client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
            certificate = CertificateFiles(Path(settings.tls_cert), Path(settings.tls_key), client_ca)
        return cls(certificate, Path(settings.tokens_file) if settings.tokens_file else None)

    @property
    def certificate(self) -> Certificate | None:
        """The ports' certificate; None if they use no TLS."""
        return self._certificate.value if self._certificate else None

    @property
    def verifies_clients(self) -> bool:
        """Whether the ports verify client certificates."""
        return self._files is not None and self._files.client_ca is not None

    @property
    def takes_tokens(self) -> bool:
        """Whether the authorization of calls is read."""
        return self._tokens is not None

    @property
    def authority(self) -> Authority | None:
        """Who knows the callers; None if any client that can connect may call."""
        return self._tokens.value if self._tokens else self._anyone_verified

    def watched_files(self) -> Iterator[WatchedFile[Certificate] | WatchedFile[Authority]]:
        """The credentials that are read from files."""
        yield from (one for one in (self._certificate, self._tokens) if one)

    def reload(self) -> None:
        """Make the watching thread read all files again, changed or not."""
        self._asked.set()

    def look(self, *, anyway: bool = False) -> None:
        """Read the files that have changed, or all of them with ``anyway``. For one thread at a time."""
        for one in self.watched_files():
            one.look(anyway=anyway)

    def start(self) -> None:
        """Watch the files until :meth:`stop`."""
        if any(self.watched_files()):
            self._thread.start()

    def stop(self) -> None:
        """Stop watching. Harmless when called again, or when never started."""
        self._stopped = True
        self._asked.set()
        if self._thread.is_alive():
            # Longer only while a file does not answer, which must not hold up the end.
            self._thread.join(_EVERY)

    def _watch(self) -> None:
        while True:
            asked = self._asked.wait(_EVERY)
            self._asked.clear()
            if self._stopped:
                return
            self.look(anyway=asked)
