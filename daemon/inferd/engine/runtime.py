"""OpenVINO, imported with its telemetry off. The rest of the package takes ``ov`` from here.

``import openvino`` normally starts a thread that would send usage data, writes an id below the home
folder, and raises if HOME is not set. All of this comes from the package ``openvino_telemetry``; if
that can't be imported, OpenVINO falls back to its own stub (openvino/tools/ovc/telemetry_stub.py).
"""

import ctypes
import sys
from collections.abc import Callable

# None makes the import machinery raise ImportError, whether or not the package is installed.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # typeshed leaves out this documented use

import numpy as np  # noqa: E402  # likewise
import openvino as ov  # type: ignore[import-untyped]  # noqa: E402  # ships no types; must follow the line above

__all__ = ["give_memory_back", "keep_small_blocks", "ov", "version"]

# From malloc.h. Larger blocks get their own mapping: models often need such blocks, requests seldom.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BLOCK = 4 << 20
_KEPT = 32 << 20

# The first access to a tensor fills a table, under a C++ lock that releases the GIL meanwhile: two threads that both
# come first deadlock (OpenVINO fact 26). Here no other thread runs yet.
_ = (ov.Tensor(np.zeros(1, np.float32)).data, ov.Tensor(np.array([b"x"])).bytes_data)


def version() -> str:
    """OpenVINO's version with its build number, such as ``2026.4.1-22982-...``."""
    return str(ov.get_version())


def _of_glibc(name: str) -> Callable[..., int]:
    return getattr(ctypes.CDLL(None), name, lambda *_: 0)


def keep_small_blocks() -> None:
    """With glibc's allocator: return freed blocks of a model's size to the system at once, but keep those of a
    message's size.

    By default glibc learns from the first large block to keep such blocks, up to 32 MB per thread, and models are
    loaded on several threads: each would keep one more model's worth of memory. But as soon as 128 KiB at the end of
    the heap are free, glibc returns them, so a message of 600 KB is fetched from the system, page by page, each time,
    which costs a fifth of the CPU time of such a request (docs/decisions/0016).
    """
    _of_glibc("mallopt")(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    _of_glibc("mallopt")(_M_TRIM_THRESHOLD, _KEPT)


def give_memory_back() -> None:
    """Return memory of freed models to the system, with glibc's allocator."""
    _of_glibc("malloc_trim")(ctypes.c_size_t(0))
