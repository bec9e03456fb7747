"""The certificate and the tokens that hold now, watched on disk by a thread of its own."""

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

# How soon a change on disk is seen, in seconds.
_EVERY = 1.0


class Credentials:
    """What both ports go by. Each call and each new connection asks again, so a change holds from then on."""

    def __init__(self, files: CertificateFiles | None = None, tokens_file: Path | None = None) -> None:
        """Raises ConfigurationError where a file can't be used."""
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
        """What to prove ourselves with; None where the ports speak in the clear."""
        return self._certificate.value if self._certificate else None

    @property
    def verifies_clients(self) -> bool:
        """Whether clients show a certificate of theirs."""
        return self._files is not None and self._files.client_ca is not None

    @property
    def takes_tokens(self) -> bool:
        """Whether what a call says of authorization counts."""
        return self._tokens is not None

    @property
    def authority(self) -> Authority | None:
        """Who knows the callers; None where whoever can connect may call."""
        return self._tokens.value if self._tokens else self._anyone_verified

    def watched_files(self) -> Iterator[WatchedFile[Certificate] | WatchedFile[Authority]]:
        """What is read from files."""
        yield from (one for one in (self._certificate, self._tokens) if one)

    def reload(self) -> None:
        """Have all files read again, changed or not, by the thread that watches them."""
        self._asked.set()

    def look(self, *, anyway: bool = False) -> None:
        """Read the files that have changed, or ``anyway`` all of them. For one thread at a time."""
        for one in self.watched_files():
            one.look(anyway=anyway)

    def start(self) -> None:
        """Look again and again until :meth:`stop`."""
        if any(self.watched_files()):
            self._thread.start()

    def stop(self) -> None:
        """Harmless when called again, or never started."""
        self._stopped = True
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while True:
            asked = self._asked.wait(_EVERY)
            self._asked.clear()
            if self._stopped:
                return
            self.look(anyway=asked)
