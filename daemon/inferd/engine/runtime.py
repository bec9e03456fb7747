"""OpenVINO, imported with its telemetry off. The rest of the package takes ``ov`` from here.

``import openvino`` normally starts a thread that would send usage data, writes an id
below the home folder, and raises where HOME is not set. All of it comes from the package
``openvino_telemetry``; where that can't be imported, OpenVINO falls back to a stub of its
own that does nothing (openvino/tools/ovc/telemetry_stub.py).
"""

import ctypes
import sys
from collections.abc import Callable

# None makes the import machinery raise ImportError, whether or not the package is installed.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # typeshed leaves out this documented use

import numpy as np  # noqa: E402  # likewise
import openvino as ov  # type: ignore[import-untyped]  # noqa: E402  # ships no types; must follow the line above

__all__ = ["give_memory_back", "keep_small_blocks", "ov", "version"]

# Of malloc.h. What is larger gets a mapping of its own; requests are seldom that large, models are.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BLOCK = 4 << 20
_KEPT = 32 << 20

# The first look at a tensor fills a table, under a C++ lock that gives the GIL up meanwhile: two threads
# that are both the first wait for each other for ever (fact 26). Here no other thread runs yet.
_ = (ov.Tensor(np.zeros(1, np.float32)).data, ov.Tensor(np.array([b"x"])).bytes_data)


def version() -> str:
    """OpenVINO's version with its build number, such as ``2026.4.1-22982-...``."""
    return str(ov.get_version())


def _of_glibc(name: str) -> Callable[..., int]:
    return getattr(ctypes.CDLL(None), name, lambda *_: 0)


def keep_small_blocks() -> None:
    """Have freed blocks of a model's size go back to the system at once, and those of a message's be kept, where the
    allocator is glibc's.

    It learns from the first large block to keep such, up to 32 MB, for the thread that had it, and models are
    loaded on several: each would keep one more model's worth of memory. But as soon as 128 KiB are free at the end
    of its heap it gives those back, and a message of 600 KB is taken from the system, page by page, each time:
    that costs a fifth of all the CPU such a request does (docs/decisions/0016).
    """
    _of_glibc("mallopt")(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    _of_glibc("mallopt")(_M_TRIM_THRESHOLD, _KEPT)


def give_memory_back() -> None:
    """Return to the system what freed models have left in the allocator, likewise."""
    _of_glibc("malloc_trim")(ctypes.c_size_t(0))
