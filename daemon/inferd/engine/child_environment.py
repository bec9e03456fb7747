"""The environment variables of child processes that read untrusted files: no secrets.

What a child needs is named here, rather than what it must not see: no list can name where operators keep their secrets.
"""

import re
from collections.abc import Mapping

_NAMES = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "GLIBC_TUNABLES"})
# Python, the loader and the C library; OpenVINO, its devices' drivers and the libraries that compute for it.
_PREFIXES = (
    *("LC_", "LD_", "PYTHON", "MALLOC_", "XDG_", "OPENVINO", "OV_", "TBB", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS"),
    *("DNNL_", "ONEDNN_", "ONEAPI_", "SYCL_", "OCL_", "OPENCL_", "CL_", "ZE_", "ZES_", "ZET_", "IGC_", "NPU_", "NEO"),
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|(API|ACCESS|AUTH|SIGNING)_?KEY", re.IGNORECASE)


def child_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What of ``inherited`` a child is to have; of what looks like a secret, nothing."""
    return {
        name: value
        for name, value in inherited.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and not _SECRET.search(name)
    }
