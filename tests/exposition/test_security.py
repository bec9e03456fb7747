"""Series about the certificate, tokens and refusals."""

from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.core import Metric

from inferd.errors import NotAuthenticated
from inferd.exposition.security import SecurityCollector
from inferd.security.certificates import CertificateFiles
from inferd.security.credentials import Credentials
from tests.certificates import CertificateAuthority


def series(held: Credentials) -> dict[tuple[str, ...], float]:
    families: list[Metric] = list(SecurityCollector(held).collect())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_without_credentials_there_are_no_series() -> None:
    assert series(Credentials()) == {}


def test_expiry_and_what_became_of_changes_are_told(tmp_path: Path) -> None:
    pair = CertificateAuthority(tmp_path / "ca").issue("server", end="20400101000000Z")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[[client]]\nname = "a"\nscopes = ["read"]\n')
    held = Credentials(CertificateFiles(pair.certificate, pair.key), tokens)
    tokens.write_text("[[client]")
    held.look()
    held.denied_calls.add("grpc", "ModelInfer", NotAuthenticated("missing"), "p")
    seen = series(held)
    assert {name: value for name, value in seen.items() if name[0] != "inferd_refused_calls_total"} == {
        ("inferd_tls_certificate_expiry_timestamp_seconds",): datetime(2040, 1, 1, tzinfo=UTC).timestamp(),
        ("inferd_credentials_current", "certificate"): 1,
        ("inferd_credentials_current", "tokens"): 0,
        ("inferd_credentials_reloads_total", "certificate", "ok"): 0,
        ("inferd_credentials_reloads_total", "certificate", "failed"): 0,
        ("inferd_credentials_reloads_total", "tokens", "ok"): 0,
        ("inferd_credentials_reloads_total", "tokens", "failed"): 1,
    }
    assert seen["inferd_refused_calls_total", "grpc", "missing"] == 1
    assert seen["inferd_refused_calls_total", "metrics", "missing"] == 0
