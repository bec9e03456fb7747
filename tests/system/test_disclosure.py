"""Disclosure: no paths get to clients, and no secrets to child processes."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests import models
from tests.engine import foreign_models
from tests.engine import models as small
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.test_faults import children
from tests.system.wire import connect, method, outcome

pytestmark = pytest.mark.system

# -- paths ------------------------------------------------------------------------

NO_MODEL = '<?xml version="1.0"?><net name="broken" version="11"><layers/></net>'


def spoil(root: Path) -> None:
    """Models that can't be served, for as many reasons as there are."""
    texts = {
        "xml": {"model.xml": NO_MODEL},
        "cut": {"model.xml": "<net"},
        "empty": {"model.xml": ""},
        "onnx": {"model.onnx": "no protobuf"},
        "tflite": {"model.tflite": "TFL3"},
        "pb": {"model.pb": "x" * 100},
        "paddle": {"model.pdmodel": "x" * 100},
        "two": {"a.xml": "", "b.xml": ""},
        "none": {"readme.txt": ""},
    }
    for name, files in texts.items():
        (folder := root / name / "1").mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text)
    for name, settings in (("toml", "devices = ["), ("key", "devise = 1"), ("device", 'devices = ["GPU.7"]')):
        models.save(models.identity(DType.INT64, [-1]), root, name, settings=settings)
    for name, settings in (("shape", "[shapes]\nz = [1]\n"), ("property", '[properties]\nNO_SUCH = "1"\n')):
        models.save(models.identity(DType.INT64, [-1]), root, name, settings=settings)
    for name in ("short", "gone"):
        models.save(small.scaled(2, [1, 64]), root, name)
        weights = root / name / "1" / "model.bin"
        weights.unlink() if name == "gone" else weights.write_bytes(b"")
    for name, location in (("sibling", "w.bin"), ("above", "../../w.bin"), ("away", "/srv/weights/w.bin")):
        (folder := root / name / "1").mkdir(parents=True)
        (folder / "model.onnx").write_bytes(foreign_models.onnx(location))
    (root / "link").symlink_to("/etc")
    (root / "loop").symlink_to("loop")


@pytest.fixture(scope="module", params=["on", "off"])
def broken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    root = tmp_path_factory.mktemp("a folder") / "sesame street"
    spoil(root)
    if request.param == "on":
        # Each takes a child process, some seconds: one of a kind will do.
        for name in {path.name for path in root.iterdir()} - {"xml", "short", "away", "property"}:
            (root / name).rename(root.parent / name)
    models.save(echo_models.picky(), root, "picky", settings="[warmup]\nruns = 0\n")
    flags = ("--preflight", str(request.param), "--cache-max-bytes", "0", "--repository-control", "--tuner-control")
    with Daemon(root, *flags) as daemon:
        yield daemon, root


def assert_nothing_of_the_machine_in(said: str, root: Path) -> None:
    for part in (*root.parts[1:], "site-packages", ".cpp", ".hpp", "/usr", "/tmp", "/home", "/etc/"):
        assert part not in said, said


async def all_that_clients_read(daemon: Daemon, names: Sequence[str]) -> dict[str, str]:
    """Of every model: what the index says of it, and what loading it and asking it come to."""
    said: dict[str, str] = {}
    async with connect(daemon.grpc) as channel:
        index = await method(channel, "RepositoryIndex")(pb.RepositoryIndexRequest())
        for model in index.models:
            said[f"index {model.name}"] = model.reason
        for name in names:
            asked = pb.ModelInferRequest(model_name=name)
            said[f"infer {name}"] = (await outcome(method(channel, "ModelInfer")(asked)))[1]
            described = pb.ModelMetadataRequest(name=name)
            said[f"metadata {name}"] = (await outcome(method(channel, "ModelMetadata")(described)))[1]
            stream = method(channel, "ModelStreamInfer")()
            await stream.write(asked)
            await stream.done_writing()
            said[f"stream {name}"] = (await stream.read()).error_message
            load = pb.RepositoryModelLoadRequest(model_name=name)
            said[f"load {name}"] = (await outcome(method(channel, "RepositoryModelLoad")(load)))[1]
    return said


def test_nothing_of_the_machine_is_in_what_clients_read_of_models_that_are_broken(broken: tuple[Daemon, Path]) -> None:
    daemon, root = broken
    said = asyncio.run(all_that_clients_read(daemon, sorted(path.name for path in root.iterdir())))
    for what, text in said.items():
        assert_nothing_of_the_machine_in(text, root)
        if not what.endswith(" picky"):
            assert text, what
    for page in ("/readyz", "/status.json", "/metrics"):
        assert_nothing_of_the_machine_in(daemon.get(page)[1], root)


def test_the_log_has_the_whole_of_it(broken: tuple[Daemon, Path]) -> None:
    daemon, root = broken
    assert any(str(root) in line for line in daemon.lines)
    assert any(".cpp:" in line for line in daemon.lines)


def test_channelz_names_no_socket_in_the_file_system(tmp_path: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")

    def said(target: str) -> str:
        with grpc.insecure_channel(target) as channel:
            channelz = channelz_pb2_grpc.ChannelzStub(channel)
            (server,) = channelz.GetServers(channelz_pb2.GetServersRequest()).server
            asked = [channelz_pb2.GetSocketRequest(socket_id=one.socket_id) for one in server.listen_socket]
            sockets = map(channelz.GetSocket, asked)
            return "\n".join(map(str, (server, *sockets)))

    with Daemon(tmp_path, "--workers", "2", "--preflight", "off", "--cache-max-bytes", "0") as daemon:
        text = said(daemon.grpc)
    assert "unix:" in text
    assert "127.0.0.1" in text
    assert "/" not in text


# -- secrets ----------------------------------------------------------------------

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "sesame-1",
    "DATABASE_URL": "sesame-2",
    "HTTPS_PROXY": "sesame-3",
    "OTEL_EXPORTER_OTLP_HEADERS": "sesame-4",
    "PYTHON_KEYRING_PASSWORD": "sesame-5",
}


def environments(process: int, command: str) -> Iterator[dict[str, str]]:
    """Those of the children of ``process`` that run ``command``, as the kernel shows them."""
    for child, line in children(process).items():
        if command in line:
            with suppress(OSError):
                entries = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
                yield dict(entry.split("=", 1) for entry in entries if "=" in entry)


@pytest.mark.parametrize(
    ("command", "parent"),
    [
        ("inferd.engine.preflight_process", ("serve", "--metrics-bind", "127.0.0.1:0", "--grpc-bind", "127.0.0.1:0")),
        ("inferd.tuner.probe_child", ("tune", "run")),
    ],
)
def test_child_processes_have_no_secrets_in_their_environment(
    tmp_path: Path, command: str, parent: tuple[str, ...]
) -> None:
    # Of no fixed shape, or it would run inline and leave nothing to tune.
    models.save(small.scaled(2, [-1, 64]), tmp_path / "models", "m")
    more = {
        "NOTIFY_SOCKET": f"@{tmp_path.name}-sesame",
        "LC_ALL": "C.UTF-8",
        "INFERD_CACHE_DIR": str(tmp_path / "sesame"),
        "INFERD_PROFILE_DIR": str(tmp_path / "profiles"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "inferd", *parent, "--model-repository", str(tmp_path / "models")],
        env=dict(os.environ) | SECRETS | more,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        seen: dict[str, str] = {}
        given_up = time.monotonic() + 60
        while not seen and process.poll() is None and time.monotonic() < given_up:
            seen = next(environments(process.pid, command), {})
    finally:
        process.kill()
        process.wait()
    assert seen["LC_ALL"] == "C.UTF-8"
    assert seen["PATH"] == os.environ["PATH"]
    assert not {name for name in seen if name.startswith(("INFERD_", "OTEL_", "AWS_")) or "sesame" in seen[name]}
    assert "NOTIFY_SOCKET" not in seen
