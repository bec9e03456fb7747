"""Answers a scrape, in the format it asks for, and lets requests go first meanwhile."""

import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from inferd.exposition import exposition
from inferd.metrics import instruments
from inferd.metrics.families import gauge

# A thread that computes keeps the interpreter for 5 ms at a time from the event loop, which every request
# would feel; one that sleeps, however shortly, hands it over.
_NAP_SECONDS = 0.0001

# zlib's way to say gzip, and its quickest level: the text is repetitive, and time matters more.
_GZIP = 31
_LEVEL = 1


Encoder = Callable[[Collector], bytes]


Answer = tuple[list[tuple[str, str]], bytes]
"""Headers and body."""


class Scrape(Collector):
    """The body of /metrics, made by one thread at a time: those that ask meanwhile share the next one. Adds to
    ``registry`` how long the scrape before took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._seconds = 0.0
        self._heads: exposition.Heads = {}
        self._lock = Lock()
        # The last answer: when it was begun, for which question, and what it was.
        self._last: tuple[float, Hashable, Answer] | None = None
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield gauge(instruments.SCRAPE_SECONDS, [((), self._seconds)])

    def answer(self, accept: str, accept_encoding: str, names: Sequence[str] = ()) -> Answer:
        """Headers and body for a request with those two headers; of the series in ``names`` where there are any."""
        asked = time.monotonic()
        encode, content_type = _chosen(accept)
        question = content_type, gzip_accepted(accept_encoding), tuple(names)
        with self._lock:
            if self._last is not None and self._last[0] >= asked and self._last[1] == question:
                return self._last[2]
            begun = time.monotonic()
            answer = self._made(encode, *question)
            self._last = begun, question, answer
            self._seconds = time.monotonic() - begun
            return answer

    def _made(self, encode: Encoder, content_type: str, gzip: bool, names: Sequence[str]) -> Answer:
        headers = [("Content-Type", content_type)]
        if names:
            body: bytes = encode(self._registry.restricted_registry(names))
        elif content_type.startswith(exposition.CONTENT_TYPE):
            body = self._text()
        else:
            body = encode(self._registry)
        if gzip:
            body = zlib.compress(body, _LEVEL, _GZIP)
            headers.append(("Content-Encoding", "gzip"))
        return headers, body

    def _text(self) -> bytes:
        parts = []
        for part in exposition.pieces(self._registry.collect(), self._heads):
            parts.append(part)
            time.sleep(_NAP_SECONDS)
        return b"".join(parts)


def _chosen(accept: str) -> tuple[Encoder, str]:
    """The encoder for that header, and the content type; the plain text format for a header that means nothing."""
    try:
        return choose_encoder(accept)
    except Exception:
        # The library takes every version for a number, and raises what comes of that.
        return choose_encoder("")
