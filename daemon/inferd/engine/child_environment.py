"""The environment of child processes that read untrusted files: no secrets.

An allowlist, because no denylist can know where operators keep their secrets.
"""

import re
from collections.abc import Mapping

_NAMES = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "GLIBC_TUNABLES"})
# For Python, the loader, the C library, OpenVINO, its device drivers and the maths libraries.
_PREFIXES = (
    *("LC_", "LD_", "PYTHON", "MALLOC_", "XDG_", "OPENVINO", "OV_", "TBB", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS"),
    *("DNNL_", "ONEDNN_", "ONEAPI_", "SYCL_", "OCL_", "OPENCL_", "CL_", "ZE_", "ZES_", "ZET_", "IGC_", "NPU_", "NEO"),
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|(API|ACCESS|AUTH|SIGNING)_?KEY", re.IGNORECASE)


def child_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``inherited`` that a child gets; none whose name looks like a secret."""
    return {
        name: value
        for name, value in inherited.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and not _SECRET.search(name)
    }
