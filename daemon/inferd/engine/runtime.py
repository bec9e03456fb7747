"""OpenVINO, imported with its telemetry off. The rest of the package takes ``ov`` from here.

``import openvino`` normally starts a thread that would send usage data, writes an id
below the home folder, and raises where HOME is not set. All of it comes from the package
``openvino_telemetry``; where that can't be imported, OpenVINO falls back to a stub of its
own that does nothing (openvino/tools/ovc/telemetry_stub.py).
"""

import sys

# None makes the import machinery raise ImportError, whether or not the package is installed.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # typeshed leaves out this documented use

import numpy as np  # noqa: E402  # likewise
import openvino as ov  # type: ignore[import-untyped]  # noqa: E402  # ships no types; must follow the line above

__all__ = ["ov", "version"]

# The first look at a tensor fills a table, under a C++ lock that gives the GIL up meanwhile: two threads
# that are both the first wait for each other for ever (fact 26). Here nobody else is about yet.
_ = (ov.Tensor(np.zeros(1, np.float32)).data, ov.Tensor(np.array([b"x"])).bytes_data)


def version() -> str:
    """OpenVINO's version with its build number, such as ``2026.4.1-22982-...``."""
    return str(ov.get_version())
