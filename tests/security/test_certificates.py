"""Certificate files: what is read from them, and when they expire."""

import os
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import ConfigurationError
from inferd.security import certificates
from inferd.security.certificates import CertificateFiles, names_of, not_after
from tests.certificates import CertificateAuthority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def pair(authority: CertificateAuthority) -> Pair:
    return authority.issue("server", "DNS:localhost", end="20400102030405Z")


def problem(*files: Path) -> str:
    with pytest.raises(ConfigurationError) as raised:
        certificates.read(CertificateFiles(*files))
    return str(raised.value)


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("20491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),  # the last in the short form
        ("20500101000000Z", datetime(2050, 1, 1, tzinfo=UTC)),
        ("99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("20210102030405Z", datetime(2021, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_the_moment_of_expiry_is_read(authority: CertificateAuthority, written: str, moment: datetime) -> None:
    issued = authority.issue("server", end=written)
    assert not_after(issued.certificate.read_bytes()) == moment.timestamp()


def test_the_first_certificate_of_a_chain_is_the_one_that_counts(authority: CertificateAuthority, pair: Pair) -> None:
    chain = b"a comment\n" + pair.certificate.read_bytes() + authority.certificate.read_bytes()
    assert not_after(chain) == datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


@given(st.binary(max_size=300), st.integers(0, 10_000))
def test_noise_has_no_expiry(noise: bytes, place: int) -> None:
    for der in (noise, noise[: place % (len(noise) + 1)]):
        pem = ssl.DER_cert_to_PEM_cert(der).encode()
        for text in (noise, pem):
            try:
                assert isinstance(not_after(text), float)
            except (ValueError, IndexError):
                continue


def test_a_matching_key_and_certificate_are_accepted(authority: CertificateAuthority, pair: Pair) -> None:
    found = certificates.read(CertificateFiles(pair.certificate, pair.key, authority.certificate))
    assert (found.chain, found.key) == (pair.certificate.read_bytes(), pair.key.read_bytes())
    assert found.client_ca == authority.certificate.read_bytes()
    assert found.context.verify_mode is ssl.CERT_OPTIONAL
    assert certificates.read(CertificateFiles(pair.certificate, pair.key)).context.verify_mode is ssl.CERT_NONE


def test_a_key_that_does_not_match_is_refused(authority: CertificateAuthority, pair: Pair) -> None:
    other = authority.issue("other")
    assert (
        problem(pair.certificate, other.key) == f"{other.key}: not the key of {pair.certificate}: KEY_VALUES_MISMATCH"
    )


@pytest.mark.parametrize("content", [b"", b"\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_without_a_certificate_is_refused(tmp_path: Path, pair: Pair, content: bytes) -> None:
    file = tmp_path / "broken.pem"
    file.write_bytes(content)
    assert problem(file, pair.key).startswith(f"{pair.key}: not the key of {file}: ")
    assert problem(pair.certificate, file).startswith(f"{file}: not the key of {pair.certificate}: ")
    assert problem(pair.certificate, pair.key, file).startswith(f"{file}: contains no CA: ")


def test_a_key_with_a_password_is_refused_and_the_terminal_is_not_asked(
    authority: CertificateAuthority, pair: Pair, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    authority.lock(pair.key, locked)
    assert problem(pair.certificate, locked).startswith(f"{locked}: not the key of {pair.certificate}: ")


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_missing_file_is_named(authority: CertificateAuthority, pair: Pair, tmp_path: Path, absent: int) -> None:
    files = [pair.certificate, pair.key, authority.certificate]
    files[absent] = tmp_path / "none"
    assert problem(*files) == f"{tmp_path / 'none'}: No such file or directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_key_is_named(pair: Pair, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o000)
    assert problem(pair.certificate, key) == f"{key}: Permission denied"


@pytest.mark.parametrize(
    ("peer", "names"),
    [
        ({}, ()),
        ({"subject": ((("countryName", "X"),), (("commonName", "a"),))}, ("a",)),
        ({"subject": ((("commonName", "a"),),), "subjectAltName": (("DNS", "b"), ("URI", "c://d"))}, ("b", "c://d")),
        ({"subject": ((("countryName", "X"),),)}, ()),
    ],
)
def test_the_names_are_the_alternative_ones_or_else_the_common_one(
    peer: dict[str, object], names: tuple[str, ...]
) -> None:
    assert names_of(peer) == names
