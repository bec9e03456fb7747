"""Triton's own server, in C++, from PyTriton's wheel: writes a model repository, and starts `tritonserver` on it.

https://github.com/triton-inference-server/python_backend
PyTriton itself is not used: it would put a proxy between the server and the model. What it does about the backend is
done here as it does it: the stub for this Python goes next to the backend, and Python's library is on the library path.

Each model has one of three configurations; the runner tries them, and keeps the best of each model.
"""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import infer_pool
import openvino as ov
from infer_pool import Settings

DTYPES = {"f32": "TYPE_FP32", "i32": "TYPE_INT32"}
"""Triton's names of OpenVINO's types."""
ROWS = 8
"""The most requests that dynamic batching puts together: as many as are in flight where costs are compared."""


def configuration(name: str, file: str, choice: str, threads: int) -> str:
    """The config.pbtxt of a model.

    ``instances``: a process with one stream for each thread, one request each. ``batches``: one process with all
    streams, which gets all requests that wait, up to ROWS. ``both``: a process with one stream for each thread, each
    of which gets those that wait.
    """
    model = ov.Core().read_model(file)
    one, batches = choice == "batches", choice != "instances"

    def tensor(kind: str, port: ov.Output) -> str:
        shape = [str(size) for size in list(port.shape)[1 if batches else 0 :]]
        dtype = DTYPES[port.element_type.get_type_name()]
        return f'{kind} [{{ name: "{port.any_name}" data_type: {dtype} dims: [{", ".join(shape)}] }}]'

    parameters = {"file": file, "streams": str(threads if one else 1)}
    lines = [
        f'name: "{name}"',
        'backend: "python"',
        f"max_batch_size: {ROWS if batches else 0}",
        tensor("input", model.inputs[0]),
        tensor("output", model.outputs[0]),
        f"instance_group [{{ kind: KIND_CPU count: {1 if one else threads} }}]",
        *(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()),
        *(["dynamic_batching {}"] if batches else []),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    settings = Settings.read()
    choices = settings.choices
    repository = Path(settings.scratch) / "models"
    for name, file in settings.models.items():
        (repository / name / "1").mkdir(parents=True)
        # The stub knows no PYTHONPATH; the folder of the model is on its path.
        for source in (Path(__file__).with_name("model.py"), Path(infer_pool.__file__)):
            shutil.copy(source, repository / name / "1")
        text = configuration(name, file, choices[name], settings.threads)
        (repository / name / "config.pbtxt").write_text(text)
    found = find_spec("pytriton")
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent / "tritonserver"
    stub, backend = "triton_python_backend_stub", root / "backends" / "python"
    of_this_python = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / stub
    if not of_this_python.exists():
        sys.exit(f"the wheel has no stub for Python {sys.version_info.major}.{sys.version_info.minor}")
    if not (backend / stub).exists():
        shutil.copy(of_this_python, backend / stub)
    server = root / "bin" / "tritonserver"
    for file in (server, backend / stub):
        file.chmod(0o755)
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    arguments = [
        f"--model-repository={repository}",
        f"--backend-directory={root / 'backends'}",
        "--disable-auto-complete-config",
        "--allow-http=false",
        "--allow-metrics=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={settings.port}",
        "--exit-timeout-secs=5",
    ]
    os.execv(server, [str(server), *arguments])  # the runner ends this very process


if __name__ == "__main__":
    main()
