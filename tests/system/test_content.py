"""Wherever a model keeps its weights: once their file is another, so is the answer, however that comes to be known."""

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from grpc import StatusCode
from onnx import TensorProto, helper, numpy_helper

from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import ov
from tests.engine import models, saved_models
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.wire import OK, connect, method, request

pytestmark = pytest.mark.system

ROWS = 8
ONE, FIVE = 1.0, 5.0
ONES = np.ones((1, ROWS), np.float32)
PATIENCE = 60.0
F32 = TensorProto.FLOAT

# What makes the weights of version 1 of a model below a root all of one number, then of another.
Put = Callable[[Path, str, float], None]


def filled(value: float) -> "np.ndarray[Any, Any]":
    return np.full((ROWS, ROWS), value, np.float32)


def external(location: str, name: str = "w") -> TensorProto:
    """A tensor whose numbers are in the file at ``location``."""
    tensor = TensorProto(name=name, data_type=F32, dims=(ROWS, ROWS), data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * ROWS * ROWS))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(
    file: Path, nodes: Sequence[onnx.NodeProto] = (), initializers: Sequence[TensorProto] = (), padding: int = 0
) -> None:
    """``file`` as y = x @ w, with ``w`` from ``nodes`` or ``initializers``."""
    info = helper.make_tensor_value_info
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    made = helper.make_graph(
        [*nodes, product], "g", [info("x", F32, ["B", ROWS])], [info("y", F32, ["B", ROWS])], list(initializers)
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8, doc_string="x" * padding)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = model.SerializeToString()
    if not file.exists() or file.read_bytes() != content:
        file.write_bytes(content)


def branch(location: str, name: str) -> onnx.GraphProto:
    """A subgraph that gives what is at ``location``."""
    constant = helper.make_node("Constant", [], [f"c{name}"], value=external(location, f"c{name}"))
    passed = helper.make_node("Identity", [f"c{name}"], [f"o{name}"])
    return helper.make_graph([constant, passed], name, [], [helper.make_tensor_value_info(f"o{name}", F32, [8, 8])])


def replaced(file: Path, value: float) -> None:
    """As deployments do it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    filled(value).tofile(made := file.with_name(file.name + ".next"))
    made.replace(file)


def rewritten(file: Path, value: float) -> None:
    """In place, in as many bytes, and as if it had been left alone."""
    before = file.stat() if file.exists() else None
    with file.open("r+b" if before is not None else "wb") as stream:
        stream.write(filled(value).tobytes())
    if before is not None:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def initializer(location: str, write: Callable[[Path, float], None] = replaced) -> Put:
    def put(root: Path, name: str, value: float) -> None:
        graph(root / name / "1/model.onnx", initializers=[external(location)])
        write(root / name / "1" / location, value)

    return put


def constant(root: Path, name: str, value: float) -> None:
    graph(root / name / "1/model.onnx", [helper.make_node("Constant", [], ["w"], value=external("a/.c"))])
    replaced(root / name / "1/a/.c", value)


def subgraph(root: Path, name: str, value: float) -> None:
    branches = {"then_branch": branch("deep/w", "1"), "else_branch": branch("deep/w", "2")}
    condition = numpy_helper.from_array(np.bool_(True), "yes")
    graph(root / name / "1/model.onnx", [helper.make_node("If", ["yes"], ["w"], **branches)], [condition])
    replaced(root / name / "1/deep/w", value)


def at_the_root(root: Path, name: str, value: float) -> None:
    graph(root / f"{name}.onnx", initializers=[external(f"./.{name}/deep//w")], padding=5 << 20)
    replaced(root / f".{name}/deep/w", value)


def unversioned(root: Path, name: str, value: float) -> None:
    graph(root / name / "model.onnx", initializers=[external(".data/w")])
    replaced(root / name / ".data/w", value)


def representation(root: Path, name: str, value: float) -> None:
    made = root.parent / "made"
    x = models.parameter([-1, ROWS])
    network = models.model({"y": models.op.matmul(x, models.op.constant(filled(value)), False, False)}, [x])
    for file in models.save(network, made).parent.iterdir():
        folder = root / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".xml" and not (folder / file.name).exists():
            file.replace(folder / file.name)
        if file.suffix == ".bin":
            rewritten(folder / file.name, value)


def whole_folder(root: Path, name: str, value: float) -> None:
    initializer("w")(root.parent / "made", name, value)
    folder = root / name / "1"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(root.parent / "old")
    (root.parent / "made" / name / "1").rename(folder)
    shutil.rmtree(root.parent / "old", ignore_errors=True)


def linked_folder(root: Path, name: str, value: float) -> None:
    initializer("w")(root / ".store", f"{name}-{value}", value)
    (root / name).mkdir(exist_ok=True)
    (link := root / name / ".next").symlink_to(f"../.store/{name}-{value}/1")
    link.replace(root / name / "1")


def linked_file(root: Path, name: str, value: float) -> None:
    graph(root / name / "1/model.onnx", initializers=[external("w")])
    for each in (ONE, FIVE):
        replaced(root / name / f"1/.{each}", each)
    (link := root / name / "1/.next").symlink_to(f".{value}")
    link.replace(root / name / "1/w")


def saved_model(where: str) -> Put:
    def put(root: Path, name: str, value: float) -> None:
        folder = root / f"{name}{where}"
        if not (folder / "saved_model.pb").exists():
            saved_models.save(folder, filled(value))
        rewritten(folder / "variables/variables.data-00000-of-00001", value)

    return put


def frozen(root: Path, name: str, value: float) -> None:
    saved_models.freeze(root / name / "1/model.pb", filled(value))


KINDS: dict[str, Put] = {
    "below": initializer("data/weights.bin"),
    "hidden": initializer(".weights"),
    "nested": initializer("./.a/.b/c/weights"),
    "roundabout": initializer("a/../w"),
    "untouched": initializer("w", rewritten),
    "constant": constant,
    "subgraph": subgraph,
    "root": at_the_root,
    "unversioned": unversioned,
    "representation": representation,
    "folder": whole_folder,
    "linked-folder": linked_folder,
    "linked-file": linked_file,
    "saved-model": saved_model("/1/model.saved_model"),
    "saved-model-version": saved_model("/1"),
    "saved-model-root": saved_model(".saved_model"),
    "frozen": frozen,
}


def put_all(root: Path, value: float) -> None:
    for name, put in KINDS.items():
        put(root, name, value)


async def answers(daemon: Daemon, *names: str) -> dict[str, float | StatusCode]:
    """What each model makes of ones: the sum of a column of its weights."""
    found: dict[str, float | StatusCode] = {}
    async with connect(daemon.grpc) as channel:
        infer = method(channel, "ModelInfer")
        for name in names or KINDS:
            call = infer(request(name, {"x:0" if name == "frozen" else "x": ONES}))
            if await call.code() is OK:
                found[name] = float(np.frombuffer((await call).raw_output_contents[0], np.float32)[0])
            else:
                found[name] = await call.code()
    return found


async def load(daemon: Daemon, *names: str) -> list[str]:
    """Ask for each to be loaded; what was wrong, "" where nothing was."""
    async with connect(daemon.grpc) as channel:
        loading = method(channel, "RepositoryModelLoad")
        calls = [loading(pb.RepositoryModelLoadRequest(model_name=name)) for name in names]
        return [await call.details() or "" for call in calls]


def reload(daemon: Daemon) -> None:
    before = len(daemon.events("reloaded"))
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: len(daemon.events("reloaded")) > before, PATIENCE, daemon.log)


def compiled(daemon: Daemon) -> list[str]:
    """Models that a child process has tried, which is where they are compiled."""
    return [event["model"] for event in daemon.events("preflight passed")]


def test_what_is_replaced_is_served_however_that_comes_to_be_known(
    tmp_path: Path,
) -> None:
    root, cache = tmp_path / "models", tmp_path / "cache"
    root.mkdir()
    put_all(root, ONE)
    flags = ("--cache-dir", str(cache), "--preflight", "on", "--repository-control")
    with Daemon(root, *flags) as daemon:
        assert asyncio.run(answers(daemon)) == dict.fromkeys(KINDS, 8)
        put_all(root, FIVE)
        assert asyncio.run(load(daemon, *KINDS)) == [""] * len(KINDS)
        assert asyncio.run(answers(daemon)) == dict.fromkeys(KINDS, 40)
        # What was compiled before is found again from here on.
        before = len(compiled(daemon))
        put_all(root, ONE)
        reload(daemon)
        assert asyncio.run(answers(daemon)) == dict.fromkeys(KINDS, 8)
        assert compiled(daemon)[before:] == []
    with Daemon(root, *flags, "--repository-poll-interval", "0.2") as daemon:
        assert asyncio.run(answers(daemon)) == dict.fromkeys(KINDS, 8)
        put_all(root, FIVE)
        until(lambda: asyncio.run(answers(daemon)) == dict.fromkeys(KINDS, 40), PATIENCE, daemon.log)
        assert compiled(daemon) == []
    with Daemon(root, *flags) as daemon:
        assert asyncio.run(answers(daemon)) == dict.fromkeys(KINDS, 40)
        assert compiled(daemon) == []


def test_what_is_written_again_with_the_same_content_is_left_alone(tmp_path: Path, cache_dir: Path) -> None:
    root = tmp_path / "models"
    for name in ("below", "saved-model"):
        KINDS[name](root, name, 1)
    with Daemon(root, "--cache-dir", str(cache_dir), "--preflight", "on") as daemon:
        for file in [f for f in root.rglob("*") if f.is_file()]:
            shutil.copy(file, made := file.with_name(".next"))
            made.replace(file)
        reload(daemon)
        (root / "below/model.toml").write_text("[queue]\nmax_length = 7\n")
        reload(daemon)
        assert asyncio.run(answers(daemon, "below", "saved-model")) == {"below": 8, "saved-model": 8}
        # Other settings are another version, and yet compiled no more.
        assert sorted(e["model"] for e in daemon.events("model ready")) == ["below", "below", "saved-model"]
        assert sorted(compiled(daemon)) == ["below", "saved-model"]


def test_files_that_can_not_be_a_version_s_break_their_model_alone_and_say_why(tmp_path: Path, cache_dir: Path) -> None:
    root = tmp_path / "models"
    for name in ("sound", "shared", "pipe", "pipe-main", "socket", "out", "circle"):
        initializer("w")(root, name, 1)
    replaced(root / "shared/w", 1)
    graph(root / "shared/1/model.onnx", initializers=[external("../w")])
    os.mkfifo(root / "pipe/1/.events")
    (root / "pipe-main/1/model.onnx").unlink()
    os.mkfifo(root / "pipe-main/1/model.onnx")
    os.mkfifo(root / "pipe-root.onnx")
    (root / "socket/1/null").symlink_to("/dev/null")
    (tmp_path / "elsewhere/data").mkdir(parents=True)
    (root / "out/1/data").symlink_to(tmp_path / "elsewhere")
    (root / "circle/1/again").symlink_to("..")
    (root / "circle/1/.lock").symlink_to("editor@host:1")
    with Daemon(root, "--cache-dir", str(cache_dir), "--repository-control", "--repository-external-links") as daemon:
        assert asyncio.run(load(daemon, "pipe", "pipe-main", "pipe-root", "socket")) == [
            "pipe/1/.events: is not a regular file",
            "pipe-main/1/model.onnx: is not a regular file",
            "pipe-root.onnx: is not a regular file",
            "socket/1/null: is not a regular file",
        ]
        (said,) = asyncio.run(load(daemon, "shared"))
        assert said == (
            "model 'shared' version 1 failed to load: external data '../w' is outside the model's folder, where "
            "OpenVINO can't read it"
        )
        assert asyncio.run(answers(daemon, "sound", "circle", "out")) == {"sound": 8, "circle": 8, "out": 8}
    with Daemon(root, "--cache-dir", str(cache_dir), "--repository-control") as daemon:
        assert asyncio.run(load(daemon, "out")) == [
            "out/1/data: is a symbolic link that leads out of the model repository"
        ]


@pytest.mark.parametrize(
    "flags",
    [("--preflight", "on"), ("--preflight", "on", "--cache-max-bytes", "0"), ("--preflight", "off")],
    ids=" ".join,
)
def test_a_file_that_is_cut_or_written_while_it_is_served_changes_nothing_until_it_is_loaded(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """A table of rows is used as it is, so the compiled model would go on reading its file."""
    root = tmp_path / "models"
    x = models.parameter([-1], ov.Type.i32)
    rows = models.op.constant(np.full((4096, ROWS), 1, np.float32))
    models.save(models.model({"y": models.op.gather(rows, x, models.op.constant(np.int32(0)))}, [x]), root / "t/1")
    asked = request("t", {"x": np.array([4000], np.int32)})

    async def first() -> float:
        async with connect(daemon.grpc) as channel:
            return float(np.frombuffer((await method(channel, "ModelInfer")(asked)).raw_output_contents[0], "<f4")[0])

    with Daemon(root, "--cache-dir", str(tmp_path / "cache"), "--repository-control", *flags) as daemon:
        assert asyncio.run(first()) == 1
        with (root / "t/1/model.bin").open("r+b") as weights:
            weights.write(np.full((4096, ROWS), 5, np.float32).tobytes())
        assert asyncio.run(first()) == 1
        assert asyncio.run(load(daemon, "t")) == [""]
        assert asyncio.run(first()) == 5
        os.truncate(root / "t/1/model.bin", 0)
        assert asyncio.run(first()) == 5
        assert "failed to load" in asyncio.run(load(daemon, "t"))[0]
        assert asyncio.run(first()) == 5


def test_what_is_swapped_while_it_is_loaded_is_served_and_kept_as_what_it_is(tmp_path: Path) -> None:
    """A blob of one content under the key of another would be served for good."""
    root, cache = tmp_path / "models", tmp_path / "cache"
    for name in ("link", "file", "place"):
        KINDS["below"](root, name, 1)
    for value in (1, 5):
        initializer("data/weights.bin")(root / ".store", str(value), value)
    shutil.rmtree(root / "link/1")
    (root / "link/1").symlink_to("../.store/1/1")
    flags = ("--cache-dir", str(cache), "--preflight", "on", "--repository-control")

    async def swap(daemon: Daemon) -> None:
        loads = asyncio.ensure_future(asyncio.to_thread(asyncio.run, load(daemon, *["link", "file", "place"] * 6)))
        number = 0
        while not loads.done():
            number += 1
            value = (1, 5)[number % 2]
            (link := root / "link/.next").symlink_to(f"../.store/{value}/1")
            link.replace(root / "link/1")
            replaced(root / "file/1/data/weights.bin", value)
            rewritten(root / "place/1/data/weights.bin", value)
            # Quicker than a load, and not so quick that none gets by.
            await asyncio.sleep(0.2 * (number % 5))
        for said in await loads:
            assert said == "" or "its files changed while inferd read them" in said

    with Daemon(root, *flags) as daemon:
        asyncio.run(swap(daemon))
        for value in (1, 5, 1):
            (link := root / "link/.next").symlink_to(f"../.store/{value}/1")
            link.replace(root / "link/1")
            replaced(root / "file/1/data/weights.bin", value)
            rewritten(root / "place/1/data/weights.bin", value)
            assert asyncio.run(load(daemon, "link", "file", "place")) == [""] * 3
            assert asyncio.run(answers(daemon, "link", "file", "place")) == dict.fromkeys(
                ("link", "file", "place"), 8 * value
            )
    with Daemon(root, *flags) as daemon:
        assert asyncio.run(answers(daemon, "link", "file", "place")) == dict.fromkeys(("link", "file", "place"), 8)
