"""Requests as OpenTelemetry spans, sent to a collector: the only module that uses OpenTelemetry.

Spans are built here from a request's stages when it has ended, rather than with OpenTelemetry's
own tracer: their ids are known since the request arrived, its times are too, and nothing is kept
while it runs. OpenTelemetry's exporter sends them, so its OTEL_EXPORTER_OTLP_* and OTEL_BSP_*
variables apply (headers, certificates, compression, timeout, delay).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from inferd import __version__
from inferd.errors import ConfigurationError, InferdError, one_line
from inferd.requests import Observation, Stages
from inferd.trace_context import TraceContext

log = structlog.get_logger("inferd.tracing.sampling")

# Left alone, the exporter logs several lines for every batch that it can't send.
_EXPORTERS_LOG = logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter")

# Spans waiting to be sent. A request's spans are queued or dropped together.
_QUEUE = 4096
_SPANS_OF_A_REQUEST = 9
# How long closing may take: while the collector responds, and while it does not.
_CLOSE_SECONDS = 3.0
_CLOSE_SECONDS_FAILING = 0.5

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)
# The semantic conventions count these as the server's failures; the other codes are the client's.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Spans:
    """Sends spans to the collector at ``endpoint`` (http://HOST:PORT), from a thread of its own.

    A slow or absent collector costs spans, never a request: spans without room in the queue are dropped.
    ``code_of`` names the gRPC status of an error. Raises ConfigurationError for an OTEL_*
    variable that can't be used.
    """

    def __init__(self, endpoint: str, code_of: Callable[[InferdError], str]) -> None:
        self._code_of = code_of
        self._new_span_id = RandomIdGenerator().generate_span_id
        self._scope = InstrumentationScope("inferd", __version__)
        self._added = 0
        try:
            self._resource = _resource()
            self._delivery = Delivery(OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http:")), endpoint)
            self._processor = BatchSpanProcessor(self._delivery, _QUEUE)
        except Exception as error:
            # It reads its variables here, and raises any error that an unreadable value leads to.
            raise ConfigurationError("variables OTEL_*", "", f"OpenTelemetry can't use them: {error}") from None
        _EXPORTERS_LOG.addFilter(self._delivery.filter)

    def add(self, seen: Observation, trace: TraceContext) -> None:
        """Queue the spans of a finished request: one for the whole, and within it one for each stage reached."""
        if self._added - self._delivery.taken > _QUEUE - _SPANS_OF_A_REQUEST:
            self._delivery.leave_out()
            return
        # Computed for each request: the wall clock may be set while the daemon runs.
        to_epoch = time.time_ns() - time.monotonic_ns()
        trace_id = int(trace.trace_id, 16)
        state = _state(trace.state)
        own = SpanContext(trace_id, int(trace.span_id, 16), False, _SAMPLED, state)
        parent = SpanContext(trace_id, int(trace.parent_id, 16), True, _SAMPLED, state) if trace.parent_id else None
        for name, start, end in stage_intervals(seen.stages):
            context = SpanContext(trace_id, self._new_span_id(), False, _SAMPLED, state)
            self._end(
                ReadableSpan(
                    name,
                    context,
                    own,
                    self._resource,
                    start_time=start + to_epoch,
                    end_time=end + to_epoch,
                    instrumentation_scope=self._scope,
                )
            )
        code = "OK" if seen.error is None else self._code_of(seen.error)
        self._end(
            ReadableSpan(
                # By model, as times of two models do not compare. Not by RPC: a stream is one, with many requests.
                f"infer {seen.model}",
                own,
                parent,
                self._resource,
                _attributes(seen, code),
                kind=SpanKind.SERVER,
                status=Status(StatusCode.ERROR, str(seen.error)) if code in _FAULTS else _UNSET,
                start_time=seen.stages.received + to_epoch,
                end_time=seen.stages.answered + to_epoch,
                instrumentation_scope=self._scope,
            )
        )

    def close(self) -> None:
        """Send the rest, for three seconds at most."""
        # The processor would wait for half a minute, and its interface can't change that.
        patience = _CLOSE_SECONDS_FAILING if self._delivery.failing else _CLOSE_SECONDS
        impatience = threading.Timer(patience, self._delivery.shutdown)
        impatience.daemon = True
        impatience.start()
        self._delivery.hurry()
        self._processor.shutdown()  # type: ignore[no-untyped-call]
        impatience.cancel()
        _EXPORTERS_LOG.removeFilter(self._delivery.filter)

    def _end(self, span: ReadableSpan) -> None:
        self._added += 1
        self._processor.on_end(span)


class Delivery(SpanExporter):
    """Hands spans to ``exporter`` and counts them. Logs one line when delivery fails, and one when it works again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self.taken = 0
        """Spans taken out of the queue so far, delivered or lost."""
        self.failing = False
        """Whether the last attempt failed."""
        self._exporter = exporter
        self._endpoint = endpoint
        self._left_out = 0
        self._lost = 0
        self._complained = False
        self._in_a_hurry = False
        self._shut = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ``spans``; blocks during retries."""
        left_out = self._left_out
        try:
            result = self._exporter.export(spans)
        finally:
            self.taken += len(spans)
        self.failing = result is not SpanExportResult.SUCCESS
        if self.failing:
            self._lost += len(spans)
        elif self._complained and left_out == self._left_out:
            self._complained = False
            log.info("span delivery resumed", lost_spans=self._lost, left_out_requests=self._left_out)
        return result

    def leave_out(self) -> None:
        """The spans of a request were dropped: the queue was full."""
        self._left_out += 1
        self._complain("more spans than the collector accepts")

    def filter(self, record: logging.LogRecord) -> bool:
        """Log once what the exporter would log repeatedly."""
        if record.levelno >= logging.WARNING:
            self.failing = True
            self._complain(record.getMessage())
            if self._in_a_hurry:
                self.shutdown()
        return False

    def hurry(self) -> None:
        """From now on, do not retry what fails."""
        self._in_a_hurry = True

    def shutdown(self) -> None:
        """Give up the spans being sent, and send no more."""
        if self._shut.acquire(blocking=False):  # the processor calls it too
            self._exporter.shutdown()

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("spans not delivered", endpoint=self._endpoint, why=one_line(why))


def stage_intervals(stages: Stages) -> Iterator[tuple[str, int, int]]:
    """Name, start and end (monotonic ns) of each stage reached; a failed request ended in the last of them."""
    ended = stages.answered
    reached = [
        (name, at)
        for name, at in (
            ("accept", stages.received if stages.waited else 0),
            ("decode", stages.received + stages.waited),
            ("queue", stages.queued),
            ("batch", stages.held),
            ("input", stages.started),
            ("compute", stages.submitted),
            ("handover", stages.computed),
            ("output", stages.taken),
            ("encode", stages.copied),
        )
        if 0 < at <= ended  # a run whose client no longer waits continues after the response
    ]
    for place, (name, start) in enumerate(reached, 1):
        yield name, start, reached[place][1] if place < len(reached) else ended


def _attributes(seen: Observation, code: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "rpc.system.name": "grpc",
        "rpc.response.status_code": code,
        "inferd.model": seen.model,
        "inferd.version": seen.version,
        "inferd.outcome": seen.outcome,
        "inferd.device": seen.device,
        "inferd.rows": seen.rows,
        "inferd.batch_rows": seen.batch_rows,
        "inferd.request_id": one_line(seen.id, 80),  # the client's own text
    }
    if seen.error is not None:
        attributes |= {"inferd.reason": seen.reason, "inferd.error": str(seen.error)}
        if code in _FAULTS:
            attributes["error.type"] = code
    return {name: value for name, value in attributes.items() if value != ""}


def _state(text: str) -> TraceState | None:
    if not text:
        return None
    return TraceState([(key, value) for key, _, value in (member.partition("=") for member in text.split(","))])


def _resource() -> Resource:
    """This process for OpenTelemetry; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence."""
    ours = Resource({"service.name": "inferd", "service.version": __version__})
    return Resource.create(ours.merge(OTELResourceDetector().detect()).attributes)
