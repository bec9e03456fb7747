"""The flags by which a command identifies itself, against a real port with TLS and tokens."""

import argparse
import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread

import pytest
from prometheus_client import CollectorRegistry

from inferd.cli import connection
from inferd.cli.main import main
from inferd.errors import ConfigurationError
from inferd.exposition.exporter import Exporter, Pages
from inferd.exposition.status import Status
from inferd.load_generator.server_probe import MetricsPage, NoResourceUsage
from inferd.security.certificates import CertificateFiles
from inferd.security.client_credentials import ClientCredentials
from inferd.security.credentials import Credentials
from inferd.transport.event_loop import QueueEventLoop
from tests.certificates import CertificateAuthority, Pair
from tests.metrics.made_up import server
from tests.rpc.parts import Parts

SECRET = "inferd_" + "x" * 43
TOKENS = f"""
[[token]]
name = "reader"
sha256 = "{sha256(SECRET.encode()).hexdigest()}"
scopes = ["read"]
[[client]]
name = "me.example"
scopes = ["read"]
"""


def shown(*flags: str) -> ClientCredentials:
    parser = argparse.ArgumentParser()
    connection.add_arguments(parser)
    return connection.credentials_from(parser.parse_args(flags))


def problem(*flags: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        shown(*flags)
    return str(raised.value)


@pytest.fixture(autouse=True)
def no_token_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFERD_TOKEN", raising=False)


def test_without_flags_the_call_has_no_credentials_and_no_tls() -> None:
    assert shown() == ClientCredentials()
    assert (ClientCredentials().authorization, ClientCredentials().context()) == ("", None)


def test_the_token_comes_from_the_file_or_else_from_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(f"\n{SECRET}\n")
    monkeypatch.setenv("INFERD_TOKEN", "y" * 40)
    assert shown().authorization == "Bearer " + "y" * 40
    assert shown("--token-file", str(file)).authorization == f"Bearer {SECRET}"


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", "ä".encode(), b"\xff", None])
def test_an_invalid_token_is_refused_and_not_shown(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    said = problem("--token-file", str(file))
    assert said in (
        f"{file}: contains no token",
        f"{file}: contains something other than a token",
        f"{file}: not UTF-8 text",
        f"{file}: No such file or directory",
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--client-cert", "c"), "flag --client-cert: goes with --client-key: give both or neither"),
        (("--client-key", "c"), "flag --client-cert: goes with --client-key: give both or neither"),
        (("--client-cert", "c", "--client-key", "k"), "flag --client-cert: goes with --ca, which turns TLS on"),
        (("--server-name", "n"), "flag --server-name: goes with --ca, which turns TLS on"),
    ],
)
def test_flags_that_belong_together_must_be_given_together(flags: tuple[str, ...], said: str) -> None:
    assert problem(*flags) == said


def test_a_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for made in (ClientCredentials(ca=file), ClientCredentials(ca=file).pem):
        with pytest.raises(ConfigurationError, match="No such file"):
            made.context() if isinstance(made, ClientCredentials) else made()
    file.write_text("no certificate")
    with pytest.raises(ConfigurationError, match="contains no certificate"):
        ClientCredentials(ca=file).context()


# -- against real ports -----------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def me(authority: CertificateAuthority) -> Pair:
    return authority.issue("me", "DNS:me.example")


@pytest.fixture(scope="module")
def held(authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(TOKENS)
    pair = authority.issue("daemon", "DNS:daemon.example")
    return Credentials(CertificateFiles(pair.certificate, pair.key, authority.certificate), tokens)


@contextmanager
def metrics_port(credentials: Credentials) -> Iterator[str]:
    status = Status(server)
    status.start()
    status.stop()
    exporter = Exporter(
        "127.0.0.1", 0, Pages(CollectorRegistry(), lambda: (True, "ready"), status), credentials=credentials
    )
    exporter.start()
    yield f"127.0.0.1:{exporter.port}"
    exporter.close()


@contextmanager
def grpc_port(credentials: Credentials, folder: Path) -> Iterator[str]:
    """A server that answers on a thread of its own."""
    ports: list[int] = []
    listening = Event()
    loop, stop = QueueEventLoop(), asyncio.Event()

    async def serve() -> None:
        parts = Parts(folder, {}, (), credentials)
        ports.append(parts.server.bind("127.0.0.1:0"))
        await parts.server.start()
        listening.set()
        await stop.wait()
        await parts.server.stop(0)

    thread = Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert listening.wait(30)
    yield f"127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture
def metrics(held: Credentials) -> Iterator[str]:
    """HOST:PORT of a metrics port."""
    with metrics_port(held) as address:
        yield address


@pytest.fixture
def grpc(held: Credentials, tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of a gRPC port."""
    with grpc_port(held, tmp_path) as address:
        yield address


def flags(authority: CertificateAuthority, me: Pair) -> list[str]:
    return [
        *("--ca", str(authority.certificate), "--server-name", "daemon.example"),
        *("--client-cert", str(me.certificate), "--client-key", str(me.key)),
    ]


def test_top_presents_its_certificate_or_its_token(
    authority: CertificateAuthority,
    me: Pair,
    metrics: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["top", "--json", "--metrics-address", metrics, *flags(authority, me)]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["service"] == "inferd"
    without_certificate = command[: command.index("--client-cert")]
    assert main(without_certificate) == 1
    assert "no credentials" in capsys.readouterr().err
    monkeypatch.setenv("INFERD_TOKEN", SECRET)
    assert main(without_certificate) == 0
    monkeypatch.setenv("INFERD_TOKEN", SECRET[:-1])
    assert main(command) == 1
    assert capsys.readouterr().err == f"inferd: {metrics}: unknown token\n"


def test_top_calls_no_daemon_that_has_another_name(
    authority: CertificateAuthority, metrics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--json", "--metrics-address", metrics, "--ca", str(authority.certificate)]) == 1
    assert "no daemon answers" in capsys.readouterr().err


def test_tune_presents_its_certificate_or_its_token(
    authority: CertificateAuthority, me: Pair, grpc: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    command = ["tune", "status", "--server", grpc, *flags(authority, me)]
    assert main(command) == 0
    assert main([*command, "--token-file", str(token)]) == 0
    assert capsys.readouterr().err == ""
    token.write_text(SECRET[:-1])
    assert main([*command, "--token-file", str(token)]) == 1
    assert capsys.readouterr().err == "inferd: UNAUTHENTICATED: unknown token\n"
    # The scope read is not enough to steer tuning.
    assert main(["tune", "unpin", "m", "--server", grpc, *flags(authority, me)]) == 1
    assert "PERMISSION_DENIED: Pin needs the scope 'tuner', which 'me.example'" in capsys.readouterr().err


def test_demo_classify_presents_its_certificate(
    authority: CertificateAuthority, me: Pair, grpc: str, demo_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classify = ["demo", "classify", "--server", grpc, "--models", str(demo_repository), __file__]
    assert main([*classify, *flags(authority, me)]) == 1
    assert "PERMISSION_DENIED: ModelInfer needs the scope 'infer', which 'me.example'" in capsys.readouterr().err


def calls(address: str, models: Path) -> list[list[str]]:
    """One command of each kind that calls a gRPC port."""
    return [
        ["tune", "status", "--server", address],
        ["bench", "run", "m", "--server", address],
        ["demo", "classify", "--server", address, "--models", str(models), __file__],
    ]


def test_a_command_without_tls_says_that_the_port_uses_it(
    grpc: str, metrics: str, demo_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "accepts only TLS connections; name the CA of its certificate with --ca FILE"
    for command in calls(grpc, demo_repository):
        assert main(command) == 1
        assert capsys.readouterr().err == f"inferd: UNAVAILABLE: {grpc} {said}\n"
    assert main(["top", "--json", "--metrics-address", metrics]) == 1
    assert capsys.readouterr().err == f"inferd: {metrics}: {said}\n"


def test_a_command_with_tls_says_that_the_port_uses_none(
    authority: CertificateAuthority, tmp_path: Path, demo_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca = ("--ca", str(authority.certificate))
    with grpc_port(Credentials(), tmp_path) as address:
        for command in calls(address, demo_repository):
            assert main([*command, *ca]) == 1
            said = f"inferd: UNAVAILABLE: {address} does not use TLS; leave --ca out\n"
            assert capsys.readouterr().err == said
    with metrics_port(Credentials()) as address:
        assert main(["top", "--json", "--metrics-address", address, *ca]) == 1
        assert capsys.readouterr().err == f"inferd: {address}: does not use TLS; leave --ca out\n"


def test_the_metrics_page_of_a_bench_says_which_scheme_it_needs(metrics: str) -> None:
    with pytest.raises(
        NoResourceUsage, match=r": accepts only TLS connections; use https:// and name the CA .* --ca FILE$"
    ):
        MetricsPage(f"http://{metrics}/metrics", ClientCredentials()).read()
    with (
        metrics_port(Credentials()) as address,
        pytest.raises(NoResourceUsage, match=r": does not use TLS; use http://$"),
    ):
        MetricsPage(f"https://{address}/metrics", ClientCredentials()).read()
