"""Gives requests their place in a trace, and the sampled ones spans where a collector is configured."""

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
    """Decides what is traced: as the client's own context says, else ``ratio`` of the requests.

    Without an ``endpoint`` nothing is sent, and only clients begin traces. ``code_of`` names the
    gRPC status an error travels as. Raises ConfigurationError where OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, ratio: float, code_of: Callable[[InferdError], str]) -> None:
        # Ids have to differ and need not be hard to guess; asking the system for each costs twice as much.
        self._random = random.Random()  # noqa: S311
        self._ratio = ratio if endpoint else 0.0
        self._spans = _spans(endpoint, code_of) if endpoint else None

    def begin(self, traceparent: str, tracestate: str) -> TraceContext | None:
        """The context of a request that arrives; both are empty where the client sent none."""
        if traceparent and (sent := trace_context.parse(traceparent, tracestate, self._span_id)):
            return sent
        if self._ratio and self._random.random() < self._ratio:
            return TraceContext(f"{self._random.getrandbits(128) or 1:032x}", self._span_id(), "", sampled=True)
        return None

    def observe(self, seen: Observation) -> None:
        """Make the spans of a request that ended."""
        if self._spans is not None and seen.trace is not None and seen.trace.sampled:
            self._spans.add(seen, seen.trace)

    def close(self) -> None:
        """Send what is left; returns within seconds whatever the collector does."""
        if self._spans is not None:
            self._spans.close()

    def _span_id(self) -> str:
        return f"{self._random.getrandbits(64) or 1:016x}"


def _spans(endpoint: str, code_of: Callable[[InferdError], str]) -> "Spans":
    # Only where it is wanted: it is an extra, and takes 16 MB.
    try:
        from inferd.tracing.spans import Spans
    except ModuleNotFoundError as error:
        problem = f'needs {error.name}, which is not installed: pip install "inferd[tracing]"'
        raise ConfigurationError("settings", "trace_endpoint", problem) from None
    return Spans(endpoint, code_of)
