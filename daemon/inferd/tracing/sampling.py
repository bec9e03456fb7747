"""Gives requests their place in a trace, and sampled ones spans if a collector is configured."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from inferd import trace_context
from inferd.errors import ConfigurationError, InferdError
from inferd.requests import Observation
from inferd.trace_context import TraceContext

if TYPE_CHECKING:
    from inferd.tracing.spans import Spans


class Tracer:
    """Decides what is traced: the client's own context decides, otherwise ``ratio`` of the requests are.

    Without an ``endpoint`` nothing is sent, and only clients begin traces. ``code_of`` names the
    gRPC status of an error. Raises ConfigurationError if OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, ratio: float, code_of: Callable[[InferdError], str]) -> None:
        # Ids must differ but need not be hard to guess; asking the system for each costs twice as much.
        self._random = random.Random()  # noqa: S311
        self._ratio = ratio if endpoint else 0.0
        self._spans = _spans(endpoint, code_of) if endpoint else None

    def begin(self, traceparent: str, tracestate: str) -> TraceContext | None:
        """The context of an arriving request; both are empty if the client sent none."""
        if traceparent and (sent := trace_context.parse(traceparent, tracestate, self._span_id)):
            return sent
        if self._ratio and self._random.random() < self._ratio:
            return TraceContext(f"{self._random.getrandbits(128) or 1:032x}", self._span_id(), "", sampled=True)
        return None

    def observe(self, seen: Observation) -> None:
        """Make the spans of a finished request."""
        if self._spans is not None and seen.trace is not None and seen.trace.sampled:
            self._spans.add(seen, seen.trace)

    def close(self) -> None:
        """Send the rest; returns within seconds whatever the collector does."""
        if self._spans is not None:
            self._spans.close()

    def _span_id(self) -> str:
        return f"{self._random.getrandbits(64) or 1:016x}"


def _spans(endpoint: str, code_of: Callable[[InferdError], str]) -> "Spans":
    # Imported only if needed: it is an extra, and takes 16 MB.
    try:
        from inferd.tracing.spans import Spans
    except ModuleNotFoundError as error:
        problem = f'needs {error.name}, which is not installed: pip install "inferd[tracing]"'
        raise ConfigurationError("settings", "trace_endpoint", problem) from None
    return Spans(endpoint, code_of)
