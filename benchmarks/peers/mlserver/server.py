"""MLServer: writes the settings.json and model-settings.json that its documentation describes, and starts it there.

`parallel_workers` 0 keeps inference in the server's own process, where OpenVINO computes on threads of its own; with
one or two worker processes, which get each tensor pickled, it gave half the answers a second to small requests and no
more to large ones, for 1.6 times the CPU. `debug` is off, as in production. Its workers do not start under a uvloop
above 0.21, which is what is pinned.
"""

import json
import os
import sys
from pathlib import Path

from infer_pool import Settings

settings = Settings.read()
root = Path(settings.scratch)
server = {
    "debug": False,
    "host": "127.0.0.1",
    "grpc_port": settings.port,
    "http_port": settings.other_ports[0],
    "metrics_port": settings.other_ports[1],
    "parallel_workers": 0,
    "grpc_max_message_length": 64 << 20,
}
(root / "settings.json").write_text(json.dumps(server, indent=2))
for name, file in settings.models.items():
    (root / name).mkdir()
    model = {
        "name": name,
        "implementation": "openvino_runtime.OpenVINOModel",
        "parameters": {"uri": file, "extra": {"streams": settings.threads}},
    }
    (root / name / "model-settings.json").write_text(json.dumps(model, indent=2))
command = Path(sys.executable).with_name("mlserver")
os.chdir(root)
os.execv(command, [str(command), "start", "."])  # the runner ends this very process
