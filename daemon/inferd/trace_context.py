"""Reads a request's trace from the ``traceparent`` and ``tracestate`` sent with it.

W3C Trace Context, levels 1 and 2 (https://www.w3.org/TR/trace-context-2/). Malformed headers count as
not sent, as the specification asks: a client's mistake in tracing must not fail its requests.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

# The length that the specification asks every service to carry; a longer list loses whole members.
STATE_CHARACTERS = 512
_STATE_MEMBERS = 32
_LARGE_MEMBER = 128

_TRACEPARENT = re.compile(
    r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]([0-9a-f])(-.*)?[ \t]*", re.DOTALL
)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_SAMPLED = frozenset("13579bdf")

# Keys as in level 1, which OpenTelemetry follows and level 2 only extends. A value may not end in a space.
_MEMBER = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A request's place in a trace. Ids are lower-case hexadecimal, 32 digits for a trace and 16 for a span.

    ``span_id`` is inferd's own span, ``parent_id`` the client's, empty if inferd began the trace.
    ``sampled`` says whether the trace is recorded; ``state`` is the tracestate, at most 512 characters.
    """

    trace_id: str
    span_id: str
    parent_id: str
    sampled: bool
    state: str = ""


def parse(traceparent: str, tracestate: str, new_span_id: Callable[[], str]) -> TraceContext | None:
    """The context sent by a client, with ``new_span_id()`` for inferd's own span; None without a valid one.

    A ``tracestate`` sent in parts is joined by commas. A malformed one is dropped by itself.
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, parent_id, flags, rest = found.groups()
    # A later version may append more after the flags; the parts before keep their meaning.
    if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, new_span_id(), parent_id, flags in _SAMPLED, _state(tracestate) if tracestate else "")


def _state(text: str) -> str:
    """``text`` as a list without gaps and within bounds; empty if a member is malformed or a key occurs twice."""
    if _MEMBER.fullmatch(text) and len(text) <= STATE_CHARACTERS:
        return text  # one member, the usual case
    if text.count(",") >= _STATE_MEMBERS:  # empty ones count too, and a client's list may be long
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    keys = {found[1] for member in members if (found := _MEMBER.fullmatch(member))}
    if len(keys) < len(members):
        return ""
    # The specification's order: drop large members first, then those at the end.
    for largest in (STATE_CHARACTERS, _LARGE_MEMBER):
        if len(state := ",".join(m for m in members if len(m) <= largest)) <= STATE_CHARACTERS:
            return state
    return state[: state.rindex(",", 0, STATE_CHARACTERS + 1)]
