"""How many connections the limit on open files leaves room for.

Without a free descriptor a connection is neither accepted nor closed: it waits, probes with it, until another ends. So
connections get what is left but for a reserve, for models, logs, probes and calls between workers.
"""

import resource

_RESERVE = 256
# Of a small limit half is in reserve, and more of a very small one; of the reserve a quarter is for connections to the
# metrics port.
_PART, _LEAST, _METRICS_PART = 2, 48, 4


def most_files() -> int:
    """Descriptors that this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 31


def for_calls(wanted: int, files: int) -> int:
    """Connections that clients may have where ``wanted`` are, and ``files`` may be open; 1 at least."""
    return max(1, min(wanted, files - _reserve(files)))


def for_metrics(wanted: int, files: int) -> int:
    """Likewise for connections to the metrics port."""
    return max(1, min(wanted, _reserve(files) // _METRICS_PART))


def _reserve(files: int) -> int:
    return min(_RESERVE, max(_LEAST, files // _PART))
