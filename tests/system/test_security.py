"""A daemon with TLS and tokens, as its operator and its clients see it."""

import asyncio
import http.client
import json
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from inferd.rpc.client import InferenceClient
from inferd.rpc.rpc_client import CallFailed
from inferd.security.client_credentials import ClientCredentials
from inferd.tensors import DType
from tests import models
from tests.certificates import CertificateAuthority, Pair
from tests.system import clients
from tests.system.daemon import Daemon
from tests.system.test_cli import inferd
from tests.system.wire import request

pytestmark = pytest.mark.system

PATIENCE = 60.0
SCOPES = ("infer", "read", "repository", "tuner")


def new_token(name: str, *scopes: str) -> tuple[str, str]:
    """The lines for the file, and the secret, as `inferd token new` makes them."""
    asked = [flag for scope in scopes for flag in ("--scope", scope)]
    done = inferd("token", "new", "--name", name, *asked, "--expires", "1d")
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.split()[-1]


class Operator:
    """What an operator has prepared in ``folder``: certificates, tokens and a model."""

    def __init__(self, folder: Path) -> None:
        self.authority = CertificateAuthority(folder / "ca")
        self.certificate, self.key, self.tokens = folder / "tls.pem", folder / "tls.key", folder / "tokens.toml"
        self.issue("first")
        self.repository = folder / "models"
        self.repository.mkdir()
        models.save(models.identity(DType.INT64, [-1]), self.repository, "echo")
        made = {scope: new_token(scope, scope) for scope in SCOPES}
        self.secrets = {scope: secret for scope, (_, secret) in made.items()}
        self.lines = "".join(lines for lines, _ in made.values())
        self.tokens.write_text(self.lines)

    def issue(self, name: str) -> None:
        """Put a new certificate where the daemon looks for one."""
        pair = self.authority.issue(name, "DNS:localhost", "IP:127.0.0.1")
        for made, place in ((pair.certificate, self.certificate), (pair.key, self.key)):
            place.with_suffix(".new").write_bytes(made.read_bytes())
            place.with_suffix(".new").replace(place)

    @property
    def flags(self) -> list[str]:
        return [
            *("--tls-cert", str(self.certificate), "--tls-key", str(self.key)),
            *("--tokens-file", str(self.tokens)),
        ]

    def shown(self, scope: str, pair: Pair | None = None) -> ClientCredentials:
        certificate, key = (pair.certificate, pair.key) if pair is not None else (None, None)
        return ClientCredentials(self.authority.certificate, certificate, key, "", self.secrets.get(scope, scope))

    def get(self, daemon: Daemon, path: str, secret: str = "") -> tuple[int, str]:
        """Status and body of a GET at the metrics port."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        connection = http.client.HTTPSConnection(daemon.metrics, timeout=10, context=context)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {secret}"} if secret else {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def series(self, daemon: Daemon) -> dict[tuple[str, ...], float]:
        """All that is not 0, by name and values of the labels in alphabetical order of these."""
        status, body = self.get(daemon, "/metrics", self.secrets["read"])
        assert status == 200, body
        families = text_string_to_metric_families(body)
        # A scrape may have the labels in any order.
        return {
            (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
            for family in families
            for s in family.samples
            if s.value
        }

    def certificate_of(self, address: str, protocol: str) -> str:
        """The common name that whoever connects now is shown."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.set_alpn_protocols([protocol])
        connection = http.client.HTTPSConnection(address, timeout=10, context=context)
        connection.connect()
        peer: Any = connection.sock.getpeercert()
        connection.close()
        return next(value for part in peer["subject"] for key, value in part if key == "commonName")


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="module")
def daemon(operator: Operator, cache_dir: Path) -> Iterator[Daemon]:
    with Daemon(operator.repository, "--cache-dir", str(cache_dir), "--repository-control", *operator.flags) as running:
        yield running
    assert running.stop() == 0, running.log()


def infer(daemon: Daemon, shown: ClientCredentials) -> str:
    """How an inference ends."""
    with InferenceClient(daemon.grpc, credentials=shown) as client:
        try:
            answer = client.infer("echo", {"x": np.array([1, 2], np.int64)})
        except CallFailed as failed:
            return failed.code
        np.testing.assert_array_equal(answer["y"] if "y" in answer else next(iter(answer.values())), [1, 2])
        return "OK"


def test_an_inference_wants_a_token_and_is_counted_either_way(operator: Operator, daemon: Daemon) -> None:
    before = operator.series(daemon)
    seen = [infer(daemon, operator.shown(who)) for who in ("infer", "infer", "read", "x" * 40, "")]
    assert seen == ["OK", "OK", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAUTHENTICATED"]
    after = operator.series(daemon)
    risen = {
        name[1:]: after[name] - before.get(name, 0)
        for name in after
        if name[0] == "inferd_requests_total" and after[name] != before.get(name, 0)
    }
    assert risen == {
        ("CPU", "echo", "ok", "", "1"): 2,
        ("", "_OTHER", "denied", "scope", ""): 1,
        ("", "_OTHER", "unauthenticated", "unknown", ""): 1,
        ("", "_OTHER", "unauthenticated", "missing", ""): 1,
    }
    refused = {
        name[1:]: n - before.get(name, 0) for name, n in after.items() if name[0] == "inferd_refused_calls_total"
    }
    assert refused == {("grpc", "missing"): 1, ("grpc", "unknown"): 1, ("grpc", "scope"): 1}
    assert daemon.events("call refused")[0]["client"] == "read"


def test_the_metrics_port_wants_a_token_for_all_but_health(operator: Operator, daemon: Daemon) -> None:
    paths = ("/metrics", "/status.json", "/", "/healthz", "/readyz")
    assert [operator.get(daemon, path)[0] for path in paths] == [401, 401, 401, 200, 200]
    assert [operator.get(daemon, path, operator.secrets["infer"])[0] for path in paths] == [403, 403, 403, 200, 200]
    assert [operator.get(daemon, path, operator.secrets["read"])[0] for path in paths] == [200] * 5


def test_the_commands_show_a_token(operator: Operator, daemon: Daemon) -> None:
    ca = ("--ca", str(operator.authority.certificate))
    seen = {}
    for who in ("read", "infer", ""):
        environment = {"INFERD_TOKEN": operator.secrets[who]} if who else {}
        top = inferd("top", "--once", "--metrics-address", daemon.metrics, *ca, **environment)
        status = inferd("tune", "status", "--server", daemon.grpc, *ca, **environment)
        seen[who] = (top.returncode, status.returncode)
    assert seen == {"read": (0, 0), "infer": (1, 1), "": (1, 1)}


def test_no_secret_and_no_hash_is_ever_logged(operator: Operator, daemon: Daemon) -> None:
    infer(daemon, operator.shown("tuner"))
    operator.get(daemon, "/metrics", operator.secrets["tuner"] + "x")
    log = daemon.log()
    assert "call refused" in log
    assert [scope for scope, secret in operator.secrets.items() if secret in log] == []
    assert [line for line in operator.lines.splitlines() if line.startswith("sha256") and line[10:-1] in log] == []


def test_other_clients_show_their_tokens_as_they_always_do(operator: Operator, daemon: Daemon) -> None:
    script = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
address, ca, secret = sys.argv[1:]
client = triton.InferenceServerClient(address, ssl=True, root_certificates=ca)
tensor = triton.InferInput("x", [2], "INT64").set_data_from_numpy(np.array([1, 2]))
said = [client.is_server_ready()]
for headers in ({"authorization": "Bearer " + secret}, {}):
    try:
        said.append(client.infer("echo", [tensor], headers=headers).get_response().model_name)
    except triton.InferenceServerException as error:
        said.append(error.status())
print(json.dumps(said))
"""
    ca = str(operator.authority.certificate)
    assert clients.run(script, daemon.grpc, ca, operator.secrets["infer"]) == [
        True,
        "echo",
        "StatusCode.UNAUTHENTICATED",
    ]


def test_certificate_and_tokens_change_while_it_serves(operator: Operator, cache_dir: Path) -> None:
    """New connections see the new certificate, those from before go on, and what is broken changes nothing."""
    with Daemon(operator.repository, "--cache-dir", str(cache_dir), *operator.flags) as daemon:

        def shown() -> list[str]:
            return [operator.certificate_of(daemon.grpc, "h2"), operator.certificate_of(daemon.metrics, "http/1.1")]

        with InferenceClient(daemon.grpc, credentials=operator.shown("infer")) as client:
            assert client.infer("echo", {"x": np.array([1], np.int64)})
            before = shown()
            operator.issue("second")
            daemon.wait_for("credentials reloaded", PATIENCE)
            # Either file may have been seen first: what matters is what is served once both are there.
            daemon.process.send_signal(signal.SIGHUP)
            assert wait(lambda: shown() == ["second", "second"])
            assert before == ["first", "first"]
            lines, secret = new_token("another", "infer")
            operator.tokens.write_text(operator.lines + lines)
            assert wait(lambda: infer(daemon, operator.shown(secret)) == "OK")
            operator.tokens.write_text("[[token]")
            operator.key.write_text("no key")
            assert wait(lambda: len(daemon.events("credentials not reloaded")) >= 2)
            assert shown() == ["second", "second"]
            assert infer(daemon, operator.shown(secret)) == "OK"
            series = operator.series(daemon)
            assert ("inferd_credentials_current", "tokens") not in series
            assert ("inferd_credentials_current", "certificate") not in series
            assert series["inferd_credentials_reloads_total", "tokens", "failed"] >= 1
            assert series[("inferd_tls_certificate_expiry_timestamp_seconds",)] > 0
            operator.tokens.write_text(operator.lines)
            operator.issue("third")
            assert wait(lambda: infer(daemon, operator.shown(secret)) == "UNAUTHENTICATED")
            assert wait(lambda: shown() == ["third", "third"])
            # Over the connection that was made under the first certificate.
            assert client.infer("echo", {"x": np.array([1], np.int64)})
    assert daemon.stop() == 0, daemon.log()


def wait(holds: Callable[[], bool]) -> bool:
    """Ask until it ``holds``, by a call to the daemon each time; False where it does not in time."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            return False
    return True


def test_clients_are_known_by_their_certificates(operator: Operator, cache_dir: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[[client]]\nname = "batch.example"\nscopes = ["infer"]\n')
    flags = [*operator.flags[:4], "--tokens-file", str(tokens), "--tls-client-ca", str(operator.authority.certificate)]
    known = operator.authority.issue("batch", "DNS:batch.example")
    other = operator.authority.issue("other", "DNS:other.example")
    with Daemon(operator.repository, "--cache-dir", str(cache_dir), *flags) as daemon:
        seen = [infer(daemon, operator.shown("", pair)) for pair in (known, other, None)]
    assert seen == ["OK", "PERMISSION_DENIED", "UNAVAILABLE"]
    assert daemon.stop() == 0, daemon.log()


def test_a_quota_counts_those_who_have_proved_who_they_are(operator: Operator, cache_dir: Path) -> None:
    """Whatever they call themselves beside that."""
    repository = operator.repository.parent / "slow"
    repository.mkdir()
    models.save(models.slow(200), repository, "slow")
    other, secret = new_token("other", "infer")
    operator.tokens.write_text(operator.lines + other)
    flags = [*operator.flags, "--client-max-requests", "1", "--cache-dir", str(cache_dir)]

    async def calls(address: str) -> list[str]:
        secure = grpc.ssl_channel_credentials(operator.authority.certificate.read_bytes())
        async with grpc.aio.secure_channel(address, secure) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            named = [(operator.secrets["infer"], "a"), (operator.secrets["infer"], "b"), (secret, "a")]
            made = [
                ask(message(), metadata=(("authorization", f"Bearer {s}"), ("inferd-client", name)))
                for s, name in named
            ]
            return [f"{(await call.code()).name}: {await call.details()}".split(";")[0] for call in made]

    with Daemon(repository, *flags) as daemon:
        seen = asyncio.run(calls(daemon.grpc))
    operator.tokens.write_text(operator.lines)
    refused = "RESOURCE_EXHAUSTED: model 'slow': client 'infer' may have 1 requests in flight"
    assert sorted(seen[:2]) == ["OK: ", refused]
    assert seen[2] == "OK: "


def message() -> bytes:
    return request("slow", {"x": np.ones(1, np.float32)}).SerializeToString()


# -- what it does not start with --------------------------------------------------


def test_it_does_not_start_open_to_other_machines_by_accident(operator: Operator) -> None:
    done = inferd("serve", "--model-repository", str(operator.repository), "--grpc-bind", "0.0.0.0:0")
    assert (done.returncode, done.stderr) == (
        78,
        "inferd: flag --grpc-bind: grpc_bind: 0.0.0.0:0 is open to other machines; set tls_cert or tokens_file, or "
        "allow_insecure_bind if that is intended\n",
    )


@pytest.mark.parametrize("command", ["serve", "check"])
def test_it_does_not_start_with_tokens_it_can_not_read(operator: Operator, tmp_path: Path, command: str) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text("")
    flags = ("--model-repository", str(operator.repository), "--tokens-file", str(file))
    done = inferd(command, *flags, "--metrics-bind", "127.0.0.1:0")
    assert (done.returncode, done.stderr) == (
        78,
        f"inferd: {file}: it lists no token and no client, so no client could call\n",
    )


def test_it_says_what_a_port_is_exposed_to(operator: Operator, cache_dir: Path) -> None:
    with Daemon(
        operator.repository, "--cache-dir", str(cache_dir), "--grpc-bind", "0.0.0.0:0", "--allow-insecure-bind"
    ) as daemon:
        said = [(line["setting"], line["problem"]) for line in daemon.events("port is open to other machines")]
    assert said == [
        ("grpc_bind", "without TLS, others on the network can read and change all traffic"),
        ("grpc_bind", "without tokens or client certificates, any client that can connect may call"),
    ]
    assert json.loads(daemon.lines[-1])["event"] == "stopped"
