"""The series that can be queried, and their labels, as the code declares them."""

from inferd.metrics import instruments
from inferd.metrics.instruments import Instrument

_SUFFIXES = {"counter": ("_total",), "info": ("_info",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# Made by Prometheus for every target, and by the client library for every process.
_COMMON = ("up", "process_open_fds", "process_max_fds", "process_resident_memory_bytes")


def _labels(instrument: Instrument, suffix: str) -> frozenset[str]:
    return frozenset({"job", "instance", *instrument.labels, *(["le"] if suffix == "_bucket" else [])})


DECLARED = {
    f"{one.name}{suffix}": _labels(one, suffix) for one in instruments.ALL for suffix in _SUFFIXES[one.kind]
} | dict.fromkeys(_COMMON, frozenset({"job", "instance"}))
"""Name -> labels, of each series that a scrape of inferd gives."""
