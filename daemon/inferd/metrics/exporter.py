"""The metrics endpoint: /metrics, /healthz and /readyz on a thread of its own.

A thread, so that it answers from the first moment and while the event loop is busy
loading models.
"""

import platform
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from inferd.errors import ConfigurationError
from inferd.metrics import instruments

# (may answer 200, what the body says)
Readiness = Callable[[], tuple[bool, str]]
ModelStates = Callable[[], Iterable[tuple[str, str, bool]]]


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """What one model version has to do at present."""

    model: str
    version: str
    waiting: int
    running: int
    limit: int
    sequences: int


_LOAD: tuple[tuple[instruments.Instrument, Callable[[ModelLoad], int]], ...] = (
    (instruments.QUEUE_LENGTH, lambda load: load.waiting),
    (instruments.RUNNING, lambda load: load.running),
    (instruments.IN_FLIGHT_LIMIT, lambda load: load.limit),
    (instruments.SEQUENCES, lambda load: load.sequences),
)


class StateCollector(Collector):
    """Readiness of server and models, their load, and the build, read at scrape time."""

    def __init__(
        self,
        ready: Readiness,
        models: ModelStates,
        loads: Callable[[], Iterable[ModelLoad]],
        version: str,
        openvino: str,
    ) -> None:
        self._ready, self._models, self._loads = ready, models, loads
        self._build = {"version": version, "openvino": openvino, "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(instruments.READY.name, instruments.READY.help, value=float(self._ready()[0]))
        models = GaugeMetricFamily(
            instruments.MODEL_READY.name, instruments.MODEL_READY.help, labels=instruments.MODEL_READY.labels
        )
        for model, version, ready in self._models():
            models.add_metric((model, version), float(ready))
        yield models
        loads = list(self._loads())
        for instrument, value in _LOAD:
            family = GaugeMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
            for load in loads:
                family.add_metric((load.model, load.version), float(value(load)))
            yield family
        yield InfoMetricFamily(instruments.BUILD.name, instruments.BUILD.help, value=self._build)


def registry_of(collectors: Iterable[Collector]) -> CollectorRegistry:
    """A registry of our own: the library's global one belongs to nobody."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class _Quiet(WSGIRequestHandler):
    timeout = 30  # a client that stops talking must not hold its thread

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's own name
        """Scrapes are not worth a log line."""


class Exporter:
    """The HTTP endpoint; listens from construction, answers from :meth:`start`."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, ready: Readiness) -> None:
        """Raises ConfigurationError when the address can't be bound."""
        self._metrics = make_wsgi_app(registry)
        self._ready = ready

        class Server(ThreadingWSGIServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True
            request_queue_size = 64  # the library's 5 makes the sixth of a few probes at once wait a second

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away or falls silent is not worth a traceback; all else is."""
                if not isinstance(sys.exception(), OSError):
                    super().handle_error(request, client_address)

        try:
            self._server = make_server(host, port, self._route, Server, _Quiet)
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
        match environ.get("PATH_INFO"):
            case "/metrics":
                body: Iterable[bytes] = self._metrics(environ, start_response)
                return body
            case "/healthz":
                return _text(start_response, "200 OK", "ok")
            case "/readyz":
                ready, said = self._ready()
                return _text(start_response, "200 OK" if ready else "503 Service Unavailable", said)
            case _:
                return _text(start_response, "404 Not Found", "paths: /metrics, /healthz, /readyz")


def _text(start_response: StartResponse, status: str, body: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [body.encode() + b"\n"]
