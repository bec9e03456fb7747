"""The metrics endpoint: /metrics, /healthz and /readyz, and the status page, on a thread of its own.

A thread, so that it answers from the first moment and while the event loop is busy
loading models.
"""

import base64
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from inferd import descriptors
from inferd.config.daemon import Settings, split_host_port
from inferd.errors import ConfigurationError, NotAuthenticated, OutOfScope
from inferd.exposition.connections import Connections
from inferd.exposition.scrape import Scrape
from inferd.exposition.status import Status
from inferd.security.certificates import names_of
from inferd.security.credentials import Credentials

log = structlog.get_logger("inferd.metrics")

# (may answer 200, what the body says)
Readiness = Callable[[], tuple[bool, str]]


def registry_of(collectors: Iterable[Collector]) -> CollectorRegistry:
    """A registry of our own: any code in the process can add to the library's global one."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


# A client that stops talking must not hold its thread for longer, in seconds.
_PATIENCE = 30
_MOST_CONNECTIONS = 64
_NAMES = "inferd.names"


class _RequestHandler(WSGIRequestHandler):
    timeout = _PATIENCE

    def get_environ(self) -> dict[str, Any]:
        """With the names in the client's certificate, where it showed one that was verified."""
        peer = self.request.getpeercert() if isinstance(self.request, ssl.SSLSocket) else None
        return super().get_environ() | {_NAMES: names_of(peer or {})}

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's own name
        """Scrapes are not worth a log line."""


_PATHS = ("/", "/status.json", "/metrics", "/healthz", "/readyz")
# Probes can't send tokens.
_OPEN = ("/healthz", "/readyz")
_METHODS = ("GET", "HEAD")
_UNAVAILABLE = "503 Service Unavailable"
# Seconds without a turn of the event loop, after which the server is not ready, and not alive.
_STALLED, _HUNG = 2.0, 10.0
_FRESH = ("Cache-Control", "no-store")
_CHALLENGES = (("WWW-Authenticate", "Bearer"), ("WWW-Authenticate", 'Basic realm="inferd: the token is the password"'))
_NOSNIFF = ("X-Content-Type-Options", "nosniff")


@dataclass(frozen=True, slots=True)
class _Response:
    status: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Pages:
    """What the endpoint shows; ``status`` is started and stopped elsewhere. ``stalled`` is for how many seconds the
    event loop has not turned."""

    registry: CollectorRegistry
    ready: Readiness
    status: Status
    stalled: Callable[[], float] = lambda: 0.0


class Exporter:
    """The HTTP endpoint; listens from construction, answers from :meth:`start`."""

    @classmethod
    def of(cls, settings: Settings, pages: Pages, credentials: Credentials) -> Self:
        """Where ``settings`` want it."""
        return cls(*split_host_port(settings.metrics_bind), pages, credentials=credentials)

    def __init__(self, host: str, port: int, pages: Pages, *, credentials: Credentials | None = None) -> None:
        """Raises ConfigurationError when the address can't be bound. ``credentials`` are started and stopped
        elsewhere."""
        self._metrics = Scrape(pages.registry)
        self._ready, self._status, self._stalled = pages.ready, pages.status, pages.stalled
        self._credentials = held = credentials if credentials is not None else Credentials()

        connections = Connections(descriptors.for_metrics(_MOST_CONNECTIONS, descriptors.most_files()))

        class MetricsServer(ThreadingWSGIServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True
            request_queue_size = 64  # the library's 5 makes the sixth of a few probes at once wait a second

            def finish_request(self, request: Any, client_address: Any) -> None:
                """On the connection's own thread, where a handshake that never ends holds up no other connection."""
                if (certificate := held.certificate) is None:
                    super().finish_request(request, client_address)
                    return
                request.settimeout(_PATIENCE)
                with certificate.context.wrap_socket(request, server_side=True) as secured:
                    super().finish_request(secured, client_address)

            def process_request(self, request: Any, client_address: Any) -> None:
                connections.admit(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                connections.forget(request)
                super().shutdown_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away or falls silent is not worth a traceback; all else is."""
                if not isinstance(sys.exception(), OSError):
                    super().handle_error(request, client_address)

        try:
            self._server = make_server(host, port, self._route, MetricsServer, _RequestHandler)
        except OSError as error:
            raise ConfigurationError("metrics_bind", "", f"can't listen on {host}:{port}: {error.strerror}") from None
        # How often it looks whether it was closed, in seconds.
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """The port bound, also where 0 was asked for."""
        return int(self._server.server_port)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop answering; harmless when called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _route(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if environ.get("PATH_INFO") not in _PATHS:
            answer = _text("404 Not Found", f"paths: {', '.join(_PATHS)}")
        elif method not in _METHODS:
            allowed = ", ".join(_METHODS)
            answer = _text("405 Method Not Allowed", f"methods: {allowed}", ("Allow", allowed))
        else:
            try:
                answer = self._refusal(environ) or self._answer(environ)
            except Exception:
                # The server of the standard library would write the traceback past the log.
                log.exception("metrics port failed unexpectedly", path=environ["PATH_INFO"])
                answer = _text("500 Internal Server Error", "internal error; the server's log has the details")
        start_response(answer.status, [*answer.headers, ("Content-Length", str(len(answer.body))), _NOSNIFF])
        return [] if method == "HEAD" else [answer.body]

    def _refusal(self, environ: WSGIEnvironment) -> _Response | None:
        """What to say instead to those who may not read, None to those who may."""
        if environ["PATH_INFO"] in _OPEN:
            return None
        try:
            self._check(environ)
        except (NotAuthenticated, OutOfScope) as error:
            self._credentials.denied_calls.add("metrics", environ["PATH_INFO"], error, environ.get("REMOTE_ADDR", ""))
            if isinstance(error, OutOfScope):
                return _text("403 Forbidden", str(error))
            return _text("401 Unauthorized", str(error), *_CHALLENGES)
        return None

    def _check(self, environ: WSGIEnvironment) -> None:
        """Raises NotAuthenticated or OutOfScope unless the caller may read."""
        if (authority := self._credentials.authority) is None:
            return
        said = environ.get("HTTP_AUTHORIZATION") if self._credentials.takes_tokens else None
        now = time.time()
        if said is not None and (secret := _password(said)) is not None:
            caller = authority.holder(secret, now)
        else:
            caller = authority.identify(said, environ[_NAMES], now)
        caller.check("read", environ["PATH_INFO"])

    def _answer(self, environ: WSGIEnvironment) -> _Response:
        match environ["PATH_INFO"]:
            case "/":
                page = self._status.page
                return _Response(
                    "200 OK",
                    [("Content-Type", "text/html; charset=utf-8"), _FRESH, ("Content-Security-Policy", page.policy)],
                    page.body,
                )
            case "/status.json":
                body = self._status.body(_since(environ))
                if body is None:
                    return _text(_UNAVAILABLE, "no figures yet")
                return _Response("200 OK", [("Content-Type", "application/json"), _FRESH], body)
            case "/metrics":
                names = parse_qs(environ.get("QUERY_STRING", "")).get("name[]", [])
                accept, accept_encoding = environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
                return _Response("200 OK", *self._metrics.answer(accept, accept_encoding, names))
            case "/healthz":
                stalled = self._stalled()
                return _text("200 OK", "ok") if stalled < _HUNG else _text(_UNAVAILABLE, _standing(stalled))
            case _:
                if (stalled := self._stalled()) >= _STALLED:
                    return _text(_UNAVAILABLE, _standing(stalled))
                ready, why = self._ready()
                if self._credentials.authority is not None:
                    why = why.partition("\n")[0]  # the rest names the models, and anybody may ask
                return _text("200 OK" if ready else _UNAVAILABLE, why)


def _standing(seconds: float) -> str:
    return f"the event loop has not turned for {seconds:.1f} s"


def _password(authorization: str) -> str | None:
    """The password of HTTP's Basic scheme, which is all that a browser can be made to send; None for another scheme."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        raise NotAuthenticated("malformed") from None


def _since(environ: WSGIEnvironment) -> int:
    """The number of the reading that the caller has already, 0 for none."""
    (number,) = parse_qs(environ.get("QUERY_STRING", "")).get("since", ["0"])[:1]
    return int(number) if re.fullmatch("[0-9]{1,15}", number) else 0


def _text(status: str, body: str, *headers: tuple[str, str]) -> _Response:
    return _Response(status, [("Content-Type", "text/plain; charset=utf-8"), _FRESH, *headers], body.encode() + b"\n")
