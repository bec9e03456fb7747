"""Certificate and tokens together: what a port reads, and the thread that watches the files."""

from pathlib import Path
from threading import Event

import pytest

from inferd.errors import ConfigurationError, NotAuthenticated
from inferd.security.certificates import CertificateFiles
from inferd.security.credentials import Credentials
from tests.certificates import CertificateAuthority

PATIENCE = 30.0
TOKEN = f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["infer"]\n'


def test_without_files_any_client_that_can_connect_may_call() -> None:
    held = Credentials()
    held.start()
    assert (held.certificate, held.authority, held.verifies_clients, held.takes_tokens) == (None, None, False, False)
    assert list(held.watched_files()) == []
    held.stop()


def test_a_certificate_alone_authenticates_no_client(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "ca")
    pair = authority.issue("server")
    plain = Credentials(CertificateFiles(pair.certificate, pair.key))
    assert plain.authority is None
    assert plain.certificate is not None
    verifying = Credentials(CertificateFiles(pair.certificate, pair.key, authority.certificate))
    assert verifying.verifies_clients
    assert verifying.authority is not None
    assert verifying.authority.identify(None, ("anybody",), 0).name == "anybody"


def test_an_unusable_file_at_start_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        Credentials(None, tmp_path / "none")
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        Credentials(CertificateFiles(tmp_path / "none", tmp_path / "none"))


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "of itself"])
def test_the_watching_thread_notices_a_change(tmp_path: Path, asked: bool) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(TOKEN)
    held = Credentials(None, file)
    before, (watched_file,) = held.authority, held.watched_files()
    seen, look = Event(), watched_file.look

    def watched(*, anyway: bool = False) -> None:
        look(anyway=anyway)
        if held.authority is not before:
            seen.set()

    watched_file.look = watched  # type: ignore[method-assign]
    held.start()
    file.write_text(TOKEN + "expires = 2020-01-01\n")
    if asked:
        held.reload()
    assert seen.wait(PATIENCE)
    held.stop()
    held.stop()
    assert held.takes_tokens
    with pytest.raises(NotAuthenticated):
        held.authority.identify("Bearer " + "x" * 40, (), 0)
