"""The receiving end of OTLP over gRPC: what a collector would get, for tests to look at."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Taken
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1 import trace_pb2

_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Received:
    """A span as it came; times are nanoseconds since the epoch."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    parent_is_remote: bool
    state: str
    start: int
    end: int
    attributes: dict[str, Any]
    status: str
    status_text: str
    resource: dict[str, Any]
    scope: tuple[str, str]

    @property
    def duration(self) -> int:
        return self.end - self.start


class Collector(TraceServiceServicer):
    """Listens on a free port of the loopback interface, and keeps what it gets.

    ``take`` is called first, with how many requests came before this one: it may wait, or raise to refuse.
    """

    def __init__(self, take: Callable[[int], None] = lambda _: None) -> None:
        self._take = take
        self._asked = 0
        self._changed = threading.Condition()
        self._spans: list[Received] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()

    @property
    def spans(self) -> list[Received]:
        """All that came so far."""
        with self._changed:
            return list(self._spans)

    def wait_for(self, enough: Callable[[list[Received]], bool]) -> list[Received]:
        """All spans so far, once they are ``enough``."""
        with self._changed:
            assert self._changed.wait_for(lambda: enough(self._spans), _TIMEOUT), f"got only {self._spans}"
            return list(self._spans)

    def Export(self, request: Spans, context: grpc.ServicerContext) -> Taken:  # noqa: N802 - the service's name
        asked, self._asked = self._asked, self._asked + 1
        try:
            self._take(asked)
        except ConnectionRefusedError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        with self._changed:
            self._spans += _received(request)
            self._changed.notify_all()
        return Taken()


def _received(request: Spans) -> list[Received]:
    return [
        Received(
            span.name,
            trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            bool(span.flags & trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK),
            span.trace_state,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            _values(span.attributes),
            trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
            span.status.message,
            _values(of_resource.resource.attributes),
            (of_scope.scope.name, of_scope.scope.version),
        )
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}
