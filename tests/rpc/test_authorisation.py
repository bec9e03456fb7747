"""Every RPC of every service and every path of the metrics port, with every credential a caller may present."""

import asyncio
import http.client
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from inferd.config.tokens import SCOPES
from inferd.errors import NotAuthenticated
from inferd.exposition.exporter import Exporter, Pages
from inferd.exposition.status import Status
from inferd.rpc.gate import ACCESS, SERVICE, Access
from inferd.security.certificates import CertificateFiles
from inferd.security.credentials import Credentials
from inferd.transport.call import ServerCall
from inferd.transport.credentials import server_credentials
from tests.certificates import EXPIRED, CertificateAuthority, Pair
from tests.event_loop import on_loop
from tests.metrics.made_up import server as server_state
from tests.rpc.parts import Parts

Code = grpc.StatusCode
UNAUTHENTICATED, DENIED = Code.UNAUTHENTICATED, Code.PERMISSION_DENIED
CONTROLS = (Access.REPOSITORY, Access.TUNER)
ADMINISTRATION = {method for method, access in ACCESS.items() if access in CONTROLS}


def secret(name: str) -> str:
    """A secret that no file has, of the length of a real one."""
    return f"secret-of-{name}-".ljust(43, "x")


def token(name: str, scopes: list[str], expires: str = "") -> str:
    digest = sha256(secret(name).encode()).hexdigest()
    lines = ["[[token]]", f'name = "{name}"', f'sha256 = "{digest}"', f"scopes = {scopes!r}"]
    return "\n".join([*lines, *([f"expires = {expires}"] if expires else [])]) + "\n"


TOKENS = "".join(
    [
        *(token(scope, [scope]) for scope in SCOPES),
        token("everything", list(SCOPES)),
        token("old", list(SCOPES), "2020-01-01"),
        *(f'[[client]]\nname = "{scope}.example"\nscopes = ["{scope}"]\n' for scope in SCOPES),
        '[[client]]\nname = "common name"\nscopes = ["infer"]\n',
    ]
)


@dataclass(frozen=True)
class World:
    """Certificates and a tokens file, made once."""

    ca: Path
    other_ca: Path
    server: Pair
    clients: dict[str, Pair]
    tokens: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("certificates")
    ours, others = CertificateAuthority(folder / "ours"), CertificateAuthority(folder / "others")
    tokens = folder / "tokens.toml"
    tokens.write_text(TOKENS)
    clients = {scope: ours.issue(scope, f"DNS:{scope}.example") for scope in SCOPES}
    clients |= {
        "several names": ours.issue("several", "DNS:unknown.example", "URI:spiffe://x/y", "DNS:read.example"),
        # A common name only counts in a certificate without alternative names.
        "common name": ours.issue("common name"),
        "common name with another": ours.issue("infer.example", "DNS:unknown.example"),
        "unlisted": ours.issue("unlisted", "DNS:unlisted.example"),
        "expired": ours.issue("infer", "DNS:infer.example", end=EXPIRED),
        "another ca's": others.issue("infer", "DNS:infer.example"),
    }
    server = ours.issue("server", "DNS:localhost", "IP:127.0.0.1")
    return World(ours.certificate, others.certificate, server, clients, tokens)


@dataclass(frozen=True)
class Presented:
    """A caller's credentials: the name of a client certificate, and the value of ``authorization``."""

    certificate: str = ""
    authorization: tuple[str, ...] = ()


def bearing(name: str, certificate: str = "") -> Presented:
    return Presented(certificate, (f"Bearer {secret(name)}",))


# The scopes of each caller; None for a call without valid credentials.
WITH_TOKENS: dict[str, tuple[Presented, set[str] | None]] = {
    "nothing": (Presented(), None),
    "an unknown token": (bearing("stranger"), None),
    "an expired token": (bearing("old"), None),
    "an empty token": (Presented(authorization=("Bearer ",)), None),
    "no scheme": (Presented(authorization=(secret("everything"),)), None),
    "another scheme": (Presented(authorization=("Basic " + b64encode(b":x").decode(),)), None),
    "the hash": (Presented(authorization=("Bearer " + sha256(secret("everything").encode()).hexdigest(),)), None),
    "a secret and more": (Presented(authorization=(f"Bearer {secret('everything')}x",)), None),
    "part of a secret": (Presented(authorization=(f"Bearer {secret('everything')[:-1]}",)), None),
    "two tokens": (Presented(authorization=(f"Bearer {secret('infer')}", f"Bearer {secret('infer')}")), None),
    "a token in lower case": (Presented(authorization=(f"bearer {secret('everything')}",)), set(SCOPES)),
    "a token for everything": (bearing("everything"), set(SCOPES)),
    **{f"a token for {scope}": (bearing(scope), {scope}) for scope in SCOPES},
}
WITH_CERTIFICATES: dict[str, tuple[Presented, set[str] | None]] = {
    **{f"a certificate for {scope}": (Presented(scope), {scope}) for scope in SCOPES},
    "one of several names": (Presented("several names"), {"read"}),
    "a common name": (Presented("common name"), {"infer"}),
    "a common name with another": (Presented("common name with another"), set()),
    "an unlisted certificate": (Presented("unlisted"), set()),
    "an unlisted certificate and a token": (bearing("infer", "unlisted"), {"infer"}),
    "a certificate and a token for less": (bearing("read", "infer"), {"read"}),
    "a certificate and an unknown token": (bearing("stranger", "infer"), None),
    "a certificate and an expired token": (bearing("old", "infer"), None),
}
# These fail in the handshake.
UNVERIFIED = {
    "no certificate": Presented(),
    "no certificate and a token": bearing("everything"),
    "an expired certificate": Presented("expired"),
    "an expired certificate and a token": bearing("everything", "expired"),
    "another ca's certificate": Presented("another ca's"),
    "another ca's certificate and a token": bearing("everything", "another ca's"),
}


def credentials(world: World, *, tls: bool = False, verify: bool = False, tokens: bool = False) -> Credentials:
    files = CertificateFiles(world.server.certificate, world.server.key, world.ca if verify else None)
    return Credentials(files if tls else None, world.tokens if tokens else None)


@dataclass
class Serving:
    """A server that listens, and how to call it."""

    parts: Parts
    held: Credentials
    world: World
    address: str
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    async def codes(self, shown: Presented) -> dict[str, Code]:
        """How a call of every RPC ends."""
        channel = self._channel(shown.certificate)
        metadata = tuple(("authorization", said) for said in shown.authorization)
        try:
            return {method: await _code(channel, method, metadata) for method in ACCESS}
        finally:
            await channel.close()

    def _channel(self, certificate: str) -> grpc.aio.Channel:
        if self.held.certificate is None:
            return grpc.aio.insecure_channel(self.address)
        pair = self.world.clients.get(certificate)
        shown = (pair.key.read_bytes(), pair.certificate.read_bytes()) if pair is not None else (None, None)
        secure = grpc.ssl_channel_credentials(self.world.ca.read_bytes(), *shown)
        # gRPC would share connections between equal channels, and with them the certificate.
        return grpc.aio.secure_channel(self.address, secure, options=[("grpc.use_local_subchannel_pool", 1)])


async def _code(channel: grpc.aio.Channel, method: str, metadata: Any) -> Code:
    # On the wire all four kinds are alike for one message.
    call = channel.unary_stream(method)(b"", metadata=metadata)
    try:
        async for _ in call:
            if method.endswith("/Watch"):  # which has no end
                call.cancel()
                return Code.OK
    except grpc.aio.AioRpcError as ended:
        return ended.code()
    return await call.code()


@asynccontextmanager
async def serving(
    world: World, root: Path, held: Credentials, enabled: tuple[Access, ...] = CONTROLS
) -> AsyncIterator[Serving]:
    parts = Parts(root, {}, enabled, held)
    port = parts.server.bind("127.0.0.1:0")
    await parts.server.start()
    try:
        yield Serving(parts, held, world, f"127.0.0.1:{port}")
    finally:
        await parts.server.stop(0)


async def without_credentials(world: World, root: Path) -> dict[str, Code]:
    """How each call ends without authentication."""
    async with serving(world, root, Credentials()) as open_to_all:
        codes = await open_to_all.codes(Presented())
    assert not set(codes.values()) & {UNAUTHENTICATED, DENIED, Code.UNAVAILABLE, Code.UNKNOWN} - {codes[INFER]}
    return codes


INFER, STREAM = f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"


def expected(otherwise: dict[str, Code], scopes: set[str] | None) -> dict[str, Code]:
    """How each call must end for callers with ``scopes``."""

    def code(method: str, access: Access) -> Code:
        if access is Access.OPEN or (scopes is not None and access.value in scopes):
            return otherwise[method]
        return UNAUTHENTICATED if scopes is None else DENIED

    return {method: code(method, access) for method, access in ACCESS.items()}


@pytest.mark.parametrize("who", WITH_TOKENS)
@on_loop
async def test_each_rpc_needs_a_token_with_its_scope(world: World, tmp_path: Path, who: str) -> None:
    shown, scopes = WITH_TOKENS[who]
    otherwise = await without_credentials(world, tmp_path)
    async with serving(world, tmp_path, credentials(world, tokens=True)) as served:
        assert await served.codes(shown) == expected(otherwise, scopes)
    async with serving(world, tmp_path, credentials(world, tls=True, tokens=True)) as served:
        assert await served.codes(shown) == expected(otherwise, scopes)


@pytest.mark.parametrize("who", WITH_CERTIFICATES)
@on_loop
async def test_each_rpc_needs_a_certificate_with_its_scope(world: World, tmp_path: Path, who: str) -> None:
    shown, scopes = WITH_CERTIFICATES[who]
    otherwise = await without_credentials(world, tmp_path)
    async with serving(world, tmp_path, credentials(world, tls=True, verify=True, tokens=True)) as served:
        assert await served.codes(shown) == expected(otherwise, scopes)


@pytest.mark.parametrize("tokens", [True, False], ids=["with tokens", "without tokens"])
@pytest.mark.parametrize("who", UNVERIFIED)
@on_loop
async def test_no_rpc_is_reached_without_a_certificate_if_those_are_verified(
    world: World, tmp_path: Path, who: str, tokens: bool
) -> None:
    async with serving(world, tmp_path, credentials(world, tls=True, verify=True, tokens=tokens)) as served:
        codes = await served.codes(UNVERIFIED[who])
    assert codes == dict.fromkeys(ACCESS, Code.UNAVAILABLE)
    assert served.parts.seen == []


@pytest.mark.parametrize("shown", [Presented("unlisted"), Presented("common name"), bearing("stranger", "unlisted")])
@on_loop
async def test_without_a_tokens_file_a_verified_certificate_grants_everything(
    world: World, tmp_path: Path, shown: Presented
) -> None:
    otherwise = await without_credentials(world, tmp_path)
    async with serving(world, tmp_path, credentials(world, tls=True, verify=True)) as served:
        assert await served.codes(shown) == otherwise


@pytest.mark.parametrize("who", ["nothing", "a token for everything", "a token for tuner", "a token for infer"])
@on_loop
async def test_no_scope_opens_a_disabled_control(world: World, tmp_path: Path, who: str) -> None:
    shown, scopes = WITH_TOKENS[who]
    async with serving(world, tmp_path, credentials(world, tokens=True), enabled=()) as served:
        codes = await served.codes(shown)
    refused = UNAUTHENTICATED if scopes is None else DENIED
    assert {method: codes[method] for method in ADMINISTRATION} == dict.fromkeys(ADMINISTRATION, refused)


@on_loop
async def test_a_server_without_tokens_ignores_a_token(world: World, tmp_path: Path) -> None:
    otherwise = await without_credentials(world, tmp_path)
    async with serving(world, tmp_path, Credentials()) as served:
        assert await served.codes(bearing("stranger")) == otherwise


# -- what is said, counted and read -----------------------------------------------


async def answer(served: Serving, method: str, shown: Presented, message: bytes = b"") -> tuple[Code, str]:
    channel = served._channel(shown.certificate)
    metadata = tuple(("authorization", said) for said in shown.authorization)
    call = channel.unary_unary(method)(message, metadata=metadata)
    ended = await call.code(), await call.details() or ""
    await channel.close()
    return ended


@on_loop
async def test_a_refusal_says_why_and_never_a_secret(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, credentials(world, tls=True, verify=True, tokens=True), ()) as served:
        said = [
            await answer(served, INFER, shown)
            for shown in (
                bearing("stranger", "infer"),
                bearing("old", "infer"),
                Presented("infer", ("Bearer x",)),
                bearing("read", "infer"),
                Presented("unlisted"),
            )
        ]
        flag = await answer(served, f"/{SERVICE}/RepositoryModelLoad", bearing("everything", "infer"))
    assert said == [
        (UNAUTHENTICATED, "unknown token"),
        (UNAUTHENTICATED, "the token has expired"),
        (UNAUTHENTICATED, "authorization is not of the form 'Bearer TOKEN'"),
        (DENIED, "ModelInfer needs the scope 'infer', which 'read' does not have"),
        (DENIED, "ModelInfer needs the scope 'infer', which 'unlisted.example' does not have"),
    ]
    assert flag == (DENIED, "RepositoryModelLoad is not allowed; start the server with --repository-control")


@on_loop
async def test_only_refused_inferences_are_counted_and_each_once(world: World, tmp_path: Path) -> None:
    """Whether the token or the certificate decides."""
    async with serving(world, tmp_path, credentials(world, tls=True, verify=True, tokens=True)) as served:
        for shown in (bearing("stranger", "infer"), bearing("read", "infer"), Presented("read")):
            for method in (INFER, STREAM, f"/{SERVICE}/ModelMetadata"):
                await answer(served, method, shown)
        # Whatever comes late has come when the next call is answered.
        await answer(served, f"/{SERVICE}/ServerLive", Presented("read"))
        seen = list(served.parts.seen)
        refused = {key: n for key, n in served.held.denied_calls.counts.items() if n}
    by_token = [("_OTHER", "", "unauthenticated", "unknown"), ("_OTHER", "", "denied", "scope")]
    assert seen == [by_token[0], by_token[0], by_token[1], by_token[1], by_token[1], by_token[1]]
    # A reader may read metadata.
    assert refused == {("grpc", "unknown"): 3, ("grpc", "scope"): 4}


@on_loop
async def test_the_message_of_a_refused_call_is_not_read(world: World, tmp_path: Path) -> None:
    too_large = bytes(3 << 20)
    async with serving(world, tmp_path, credentials(world, tokens=True)) as served:
        # If it were read, it would be too large; its sender gets the token's error instead.
        told = await answer(served, INFER, bearing("stranger"), too_large)
        read = await answer(served, INFER, bearing("infer"), too_large)
    assert told == (UNAUTHENTICATED, "unknown token")
    assert read[0] is Code.RESOURCE_EXHAUSTED
    async with serving(world, tmp_path, credentials(world, tls=True, verify=True, tokens=True)) as served:
        # Likewise the certificate's.
        told = await answer(served, INFER, Presented("read"), too_large)
    assert told == (DENIED, "ModelInfer needs the scope 'infer', which 'read.example' does not have")


@on_loop
async def test_a_token_removed_from_the_file_is_no_longer_valid(world: World, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(token("infer", ["infer"]))
    held = Credentials(None, file)
    async with serving(world, tmp_path, held) as served:
        before = await answer(served, INFER, bearing("infer"))
        file.write_text(token("another", ["infer"]))
        held.look()
        after = await answer(served, INFER, bearing("infer"))
        another = await answer(served, INFER, bearing("another"))
        file.write_text("[[token]")
        held.look()
        broken = await answer(served, INFER, bearing("another"))
    assert before[0] is another[0] is broken[0] is Code.UNAVAILABLE  # no model is there yet
    assert after == (UNAUTHENTICATED, "unknown token")
    assert [(one.current, one.readings) for one in held.watched_files()] == [(False, {"ok": 1, "failed": 1})]


# -- who a quota counts -----------------------------------------------------------


@on_loop
async def test_concurrent_calls_each_have_their_own_caller(world: World, tmp_path: Path) -> None:
    """The name belongs to the call, not to the connection or to the previous call."""
    held = credentials(world, tls=True, verify=True, tokens=True)
    async with serving(world, tmp_path, held) as served:
        inference = served.parts.inference
        clients: list[str] = []
        caller = inference._call_context

        def recorded(call: ServerCall, *connection: Any) -> Any:
            said = caller(call, *connection)
            clients.append(said.client)
            return said

        inference._call_context = recorded  # type: ignore[method-assign]
        channel = served._channel("infer")
        metadata: list[tuple[tuple[str, str], ...]] = [
            (),
            (("authorization", f"Bearer {secret('everything')}"),),
            (("authorization", f"Bearer {secret('infer')}"), ("inferd-client", "somebody else")),
        ]
        calls = [channel.unary_unary(INFER)(b"", metadata=metadata[n % 3]) for n in range(60)]
        assert {await call.code() for call in calls} == {Code.UNAVAILABLE}
        await channel.close()
    assert {name: clients.count(name) for name in clients} == {"infer.example": 20, "everything": 20, "infer": 20}


# -- the metrics port -------------------------------------------------------------

PATHS = ("/", "/status.json", "/metrics", "/healthz", "/readyz")
HEALTH = ("/healthz", "/readyz")


def basic(name: str) -> Presented:
    return Presented(authorization=("Basic " + b64encode(f"me:{secret(name)}".encode()).decode(),))


READERS: dict[str, tuple[Presented, set[str] | None]] = {
    **{who: case for who, case in WITH_TOKENS.items() if who != "another scheme"},
    "a wrong password": (Presented(authorization=("Basic " + b64encode(b"me:x").decode(),)), None),
    "a password that is no base64": (Presented(authorization=("Basic %",)), None),
    "an expired password": (basic("old"), None),
    "a password for infer": (basic("infer"), {"infer"}),
    "a password for read": (basic("read"), {"read"}),
}


class Exporting:
    """A metrics port that answers."""

    def __init__(self, world: World, held: Credentials) -> None:
        status = Status(server_state)
        status.start()
        status.stop()
        ready: Callable[[], tuple[bool, str]] = lambda: (True, "ready\nmodel 1: LOADING")  # noqa: E731
        self._world, self._held = world, held
        self._exporter = Exporter("127.0.0.1", 0, Pages(CollectorRegistry(), ready, status), credentials=held)
        self._exporter.start()

    def close(self) -> None:
        self._exporter.close()

    def get(self, path: str, shown: Presented) -> tuple[int, Any, str]:
        """Status, headers and body."""
        if self._held.certificate is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._exporter.port, timeout=10)
        else:
            context = ssl.create_default_context(cafile=str(self._world.ca))
            if (pair := self._world.clients.get(shown.certificate)) is not None:
                context.load_cert_chain(pair.certificate, pair.key)
            connection = http.client.HTTPSConnection("localhost", self._exporter.port, timeout=10, context=context)
        try:
            connection.putrequest("GET", path)
            for said in shown.authorization:
                connection.putheader("Authorization", said)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()

    def statuses(self, shown: Presented) -> dict[str, int]:
        return {path: self.get(path, shown)[0] for path in PATHS}


def readable(scopes: set[str] | None) -> dict[str, int]:
    otherwise = 401 if scopes is None else 200 if "read" in scopes else 403
    return {path: 200 if path in HEALTH else otherwise for path in PATHS}


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
@pytest.mark.parametrize("who", READERS)
def test_each_path_but_health_needs_a_token_to_read(world: World, who: str, tls: bool) -> None:
    shown, scopes = READERS[who]
    exporting = Exporting(world, credentials(world, tls=tls, tokens=True))
    try:
        assert exporting.statuses(shown) == readable(scopes)
    finally:
        exporting.close()


@pytest.mark.parametrize(
    ("shown", "scopes"),
    [
        *WITH_CERTIFICATES.values(),
        *WITH_TOKENS.values(),
    ],
    ids=[*WITH_CERTIFICATES, *WITH_TOKENS],
)
def test_each_path_but_health_needs_a_certificate_or_a_token_if_certificates_are_verified(
    world: World, shown: Presented, scopes: set[str] | None
) -> None:
    if shown.authorization[:1] == (WITH_TOKENS["another scheme"][0].authorization[0],):
        scopes = None
    exporting = Exporting(world, credentials(world, tls=True, verify=True, tokens=True))
    try:
        assert exporting.statuses(shown) == readable(scopes)
    finally:
        exporting.close()


@pytest.mark.parametrize("certificate", ["expired", "another ca's"])
def test_no_path_is_reached_with_an_invalid_certificate(world: World, certificate: str) -> None:
    exporting = Exporting(world, credentials(world, tls=True, verify=True, tokens=True))
    try:
        for path in PATHS:
            with pytest.raises(OSError, match=r"alert|reset|EOF"):
                exporting.get(path, bearing("everything", certificate))
    finally:
        exporting.close()


def test_without_a_tokens_file_the_metrics_port_needs_any_verified_certificate(world: World) -> None:
    exporting = Exporting(world, credentials(world, tls=True, verify=True))
    try:
        assert exporting.statuses(Presented("unlisted")) == readable({"read"})
        assert exporting.statuses(Presented()) == readable(None)
        assert exporting.statuses(bearing("everything")) == readable(None)
    finally:
        exporting.close()


def test_a_refused_reader_gets_a_challenge_and_is_counted(world: World) -> None:
    held = credentials(world, tokens=True)
    exporting = Exporting(world, held)
    try:
        status, headers, body = exporting.get("/metrics", Presented())
        denied = exporting.get("/metrics", bearing("infer"))
    finally:
        exporting.close()
    assert (status, body) == (401, f"{NotAuthenticated('missing')}\n")
    assert [said.split()[0] for said in headers.get_all("WWW-Authenticate")] == ["Bearer", "Basic"]
    assert (denied[0], denied[2]) == (403, "/metrics needs the scope 'read', which 'infer' does not have\n")
    assert {key: n for key, n in held.denied_calls.counts.items() if n} == {
        ("metrics", "missing"): 1,
        ("metrics", "scope"): 1,
    }


def test_readiness_names_no_model_to_anonymous_callers(world: World) -> None:
    bodies = {}
    for tokens in (True, False):
        exporting = Exporting(world, credentials(world, tokens=tokens))
        bodies[tokens] = exporting.get("/readyz", Presented())[2]
        exporting.close()
    assert bodies == {True: "ready\n", False: "ready\nmodel 1: LOADING\n"}


# -- another certificate while it listens -----------------------------------------


def handshake(port: int, ca: Path, client: Pair | None = None, protocol: str = "h2") -> str:
    """The common name in the server's certificate."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols([protocol])
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=context)
    connection.connect()
    peer = connection.sock.getpeercert()
    connection.close()
    return next(value for part in peer["subject"] for key, value in part if key == "commonName")


@on_loop
async def test_new_connections_get_a_new_certificate_and_old_ones_continue(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "ca")
    pairs = [authority.issue(f"server {n}", "DNS:localhost", end=f"20{n}90101000000Z") for n in (4, 5, 6)]
    files = CertificateFiles(tmp_path / "tls.pem", tmp_path / "tls.key")

    def place(pair: Pair) -> None:
        for source, target in ((pair.certificate, files.certificate), (pair.key, files.key)):
            target.with_suffix(".new").write_bytes(source.read_bytes())
            target.with_suffix(".new").replace(target)

    place(pairs[0])
    held = Credentials(files)
    parts = Parts(tmp_path / "ca", {}, (), held)
    port = parts.server.bind("localhost:0")
    await parts.server.start()
    exporter = Exporter(
        "127.0.0.1", 0, Pages(CollectorRegistry(), lambda: (True, ""), Status(server_state)), credentials=held
    )
    exporter.start()

    async def shown() -> list[str]:
        return [
            await asyncio.to_thread(handshake, one, authority.certificate, None, protocol)
            for one, protocol in ((port, "h2"), (exporter.port, "http/1.1"))
        ]

    secure = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{port}", secure) as channel:
        live = channel.unary_unary(f"/{SERVICE}/ServerLive")
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await watch.read() != grpc.aio.EOF
        assert await live(b"") == b"\x08\x01"
        seen = [await shown()]
        place(pairs[1])
        held.look()
        seen.append(await shown())
        # Another certificate's key, and then none at all: the old credentials stay.
        files.key.write_bytes(pairs[2].key.read_bytes())
        held.look()
        seen.append(await shown())
        files.key.unlink()
        held.look()
        seen.append(await shown())
        place(pairs[2])
        held.look()
        seen.append(await shown())
        # The connection, and the call on it, use the first certificate.
        assert await live(b"") == b"\x08\x01"
        assert not watch.done()
        watch.cancel()
    exporter.close()
    await parts.server.stop(0)
    assert seen == [["server 4"] * 2, ["server 5"] * 2, ["server 5"] * 2, ["server 5"] * 2, ["server 6"] * 2]
    (watched_file,) = held.watched_files()
    assert (watched_file.current, watched_file.readings) == (True, {"ok": 2, "failed": 2})
    assert held.certificate is not None
    assert held.certificate.expires == datetime(2069, 1, 1, tzinfo=UTC).timestamp()


@on_loop
async def test_a_new_client_ca_applies_to_new_connections(world: World, tmp_path: Path) -> None:
    ca = tmp_path / "clients.pem"
    ca.write_bytes(world.ca.read_bytes())
    held = Credentials(CertificateFiles(world.server.certificate, world.server.key, ca))
    async with serving(world, tmp_path, held) as served:
        live = f"/{SERVICE}/ServerLive"
        seen = [(await answer(served, live, Presented(name)))[0] for name in ("infer", "another ca's")]
        ca.write_bytes(world.other_ca.read_bytes())
        held.look()
        seen += [(await answer(served, live, Presented(name)))[0] for name in ("infer", "another ca's")]
    assert seen == [Code.OK, Code.UNAVAILABLE, Code.UNAVAILABLE, Code.OK]


@on_loop
async def test_a_port_with_tls_does_not_answer_a_client_without(world: World, tmp_path: Path) -> None:
    async with serving(world, tmp_path, credentials(world, tls=True)) as served:
        async with grpc.aio.insecure_channel(served.address) as channel:
            assert await _code(channel, f"/{SERVICE}/ServerLive", ()) is Code.UNAVAILABLE
        async with grpc.aio.secure_channel(
            served.address, grpc.ssl_channel_credentials(world.other_ca.read_bytes())
        ) as channel:
            assert await _code(channel, f"/{SERVICE}/ServerLive", ()) is Code.UNAVAILABLE


def test_without_a_certificate_there_are_no_server_credentials() -> None:
    assert server_credentials(Credentials()) is None
