"""The servers: how each is started with all workloads, and by which kinds of calls it is measured."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from json import dumps, loads
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from tests.conftest import ROOT
from tests.system.daemon import Daemon

from benchmarks.peers import clients
from benchmarks.peers.environments import HERE, floor_program, python_of, version_of
from benchmarks.peers.processes import MARK, Family
from benchmarks.peers.results import (
    COMPUTING_ECHO,
    ECHO,
    FLOOR,
    INFERD,
    INFERD_MAPPED,
    LOAD,
    SHARED_MEMORY,
    STREAM,
    STREAMED_SHARED_MEMORY,
    UNARY,
    computes,
)
from benchmarks.peers.workloads import Workload
from inferd import __version__

_START_PATIENCE = 180.0
TRITON_CONFIGURATIONS = ("instances", "batches", "both")
"""Those of triton/server.py."""
_TRIAL = 2.0
"""Seconds for which a configuration is tried with a model."""


@dataclass(frozen=True, slots=True)
class Way:
    """A kind of call to a server: its name in results, its client, and the reader of its responses."""

    name: str
    lanes: clients.Lanes
    read: Callable[[bytes], npt.NDArray[np.float32]]


_UNARY = Way(UNARY, clients.unary, clients.tensor_of_response)
_STREAM = Way(STREAM, clients.stream, clients.tensor_of_stream)
_SHARED_MEMORY = Way(SHARED_MEMORY, clients.shared_memory, clients.tensor)
_STREAMED_SHARED_MEMORY = Way(STREAMED_SHARED_MEMORY, clients.streamed_shared_memory, clients.tensor)
_HTTP = Way("HTTP", clients.http, clients.tensor)


@dataclass(frozen=True, slots=True)
class Kind:
    """A server that can be started; the first of its ``ways`` is used in comparisons.

    ``halts`` is whether it is paused while others are measured, so that it takes none of their CPU time. Servers that
    take less than a hundredth of a CPU while no client asks are left running: a pause cannot change what is measured.
    """

    name: str
    title: str
    version: str
    ways: tuple[Way, ...]
    start: "Callable[[Kind, Budget, Sequence[Workload], ExitStack], Running]"
    peer: bool = True
    halts: bool = True


@dataclass(frozen=True, slots=True)
class Budget:
    """The computing ``threads`` of a server, the folder of environments, and further flags of inferd."""

    threads: int
    environments: Path
    inferd_flags: tuple[str, ...]
    report: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready: HOST:PORT by each workload that it serves, and its processes.

    ``configuration`` tells what it was started with where it has several.
    """

    kind: Kind
    targets: Mapping[str, str]
    family: Family
    log: Callable[[], str] = field(repr=False)
    configuration: str = ""


class NotStarted(Exception):
    """A server that did not become ready, with the end of its output."""


def model_settings(model: str, threads: int) -> str:
    """inferd's model.toml of each workload. A model that computes next to nothing has none, and inferd runs it
    inline."""
    return f"[execution]\nstreams = {threads}\nthreads = {threads}\n" if computes(model) else ""


# -- inferd -----------------------------------------------------------------------


def _start_inferd(kind: Kind, budget: Budget, workloads: Sequence[Workload], stack: ExitStack) -> Running:
    family = _family(kind)
    repository = workloads[0].file.parents[2]
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-"))
    flags = ["--cache-dir", f"{scratch}/cache", "--probe-interval", "0"]
    flags += ["--shared-memory", "mapped" if kind.name == INFERD_MAPPED else "copy", *budget.inferd_flags]
    daemon = Daemon(repository, *flags, environment={MARK: family.mark})
    # In the other order a paused daemon would get SIGTERM and never end.
    stack.push(daemon.__exit__)
    stack.callback(family.go_on)
    daemon.wait_for("ready", _START_PATIENCE)
    return Running(kind, {w.name: daemon.grpc for w in workloads}, family, daemon.log)


# -- peers ------------------------------------------------------------------------


def _start_peer(
    kind: Kind,
    budget: Budget,
    workloads: Sequence[Workload],
    stack: ExitStack,
    choices: Mapping[str, str] | None = None,
) -> Running:
    """``choices`` are the configurations by model name, for a peer that has several."""
    family = _family(kind)
    python = python_of(kind.name, budget.environments, budget.report)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-", ignore_cleanup_errors=True)))
    port, *others = _free_ports(3)
    settings = {
        "models": {w.name: str(w.file) for w in workloads},
        "port": port,
        "other_ports": others,
        "threads": budget.threads,
        "scratch": str(scratch / "server"),
        "choices": choices or {},
    }
    (scratch / "server").mkdir()
    paths = [HERE / "runtime", HERE / kind.name]
    if kind.name == "ray":
        paths.append(_stubs(scratch / "stubs"))
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment = kept | {
        MARK: family.mark,
        "PEER_SETTINGS": dumps(settings),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        # Each server has its own variables; none reports to its vendor from here.
        "BENTOML_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # A process that gives itself a title keeps its variables, by which it is found.
        "SPT_NOENV": "1",
    }
    log = stack.enter_context((scratch / "log").open("w+"))
    command = [python, HERE / kind.name / "server.py"]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(family.end)
    _await_port(process, port, log)
    return Running(kind, {w.name: f"127.0.0.1:{port}" for w in workloads}, family, lambda: _tail(log))


def _start_triton(kind: Kind, budget: Budget, workloads: Sequence[Workload], stack: ExitStack) -> Running:
    """Start it with each configuration for a moment, then with the best of each model."""
    best: dict[str, tuple[float, str]] = {}
    for choice in TRITON_CONFIGURATIONS:
        with ExitStack() as trial:
            running = _start_peer(kind, budget, workloads, trial, {w.name: choice for w in workloads})
            rates = {w.name: _answers_a_second(running.targets[w.name], w) for w in workloads}
        budget.report(f"{kind.title} with {choice}: " + ", ".join(f"{n} {rate:.0f}/s" for n, rate in rates.items()))
        best = {name: max(best.get(name, (0.0, choice)), (rate, choice)) for name, rate in rates.items()}
    choices = {name: choice for name, (_, choice) in best.items()}
    running = _start_peer(kind, budget, workloads, stack, choices)
    return replace(running, configuration=", ".join(f"{name}: {choice}" for name, choice in choices.items()))


def _answers_a_second(target: str, workload: Workload) -> float:
    """Of a closed loop with LOAD requests in flight, after the first response; 0 if any of them fails."""
    with tempfile.NamedTemporaryFile(prefix="inferd-bench-") as message:
        message.write(workload.request)
        message.flush()
        options = ["--request", message.name, "--in-flight", str(LOAD), "--warm-up", "1", "--seconds", str(_TRIAL)]
        command = [sys.executable, "-m", "benchmarks.lean_client", target, *options]
        try:
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=_START_PATIENCE)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return 0.0
    heard = loads(done.stdout)
    return 0.0 if heard["errors"] else heard["answers"] / heard["seconds"]


def _stubs(folder: Path) -> Path:
    """Python generated from the protocol's .proto, for a server that registers the user's own service."""
    folder.mkdir()
    protos = ROOT / "protos"
    arguments = [f"-I{protos}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    files = ["open_inference.proto", "model_config.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments, *files], check=True)
    return folder


def _await_port(process: "subprocess.Popen[bytes]", port: int, log: IO[str]) -> None:
    given_up = time.monotonic() + _START_PATIENCE
    while time.monotonic() < given_up:
        if process.poll() is not None:
            raise NotStarted(f"ended with status {process.returncode}\n{_tail(log)}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise NotStarted(f"was not ready within {_START_PATIENCE:.0f} s\n{_tail(log)}")


# -- the echoes and the floor -----------------------------------------------------


def _start_echo(kind: Kind, _: Budget, workloads: Sequence[Workload], stack: ExitStack) -> Running:
    """One process a workload, since each returns as many bytes as inferd does."""
    family = _family(kind)
    targets = {}
    for workload in workloads:
        targets[workload.name] = _echoing(["bare_echo", str(workload.answer.nbytes + _FRAME)], family, stack)
    return Running(kind, targets, family, str)


def _start_computing_echo(kind: Kind, budget: Budget, workloads: Sequence[Workload], stack: ExitStack) -> Running:
    """One process for all workloads that compute."""
    family = _family(kind)
    served = [w for w in workloads if computes(w.name)]
    files = [f"{w.name}={w.file}" for w in served]
    target = _echoing(["computing_echo", str(budget.threads), *files], family, stack)
    return Running(kind, {w.name: target for w in served}, family, str)


def _start_floor(kind: Kind, budget: Budget, workloads: Sequence[Workload], stack: ExitStack) -> Running:
    """One process for all workloads."""
    family = _family(kind)
    program = floor_program(budget.environments, budget.report)
    command = [str(program), str(budget.threads), *(f"{w.name}={w.file}" for w in workloads)]
    target = _told_port(command, family, stack)
    return Running(kind, {w.name: target for w in workloads}, family, str)


def _echoing(command: Sequence[str], family: Family, stack: ExitStack) -> str:
    """HOST:PORT of an echo, a module of benchmarks and its arguments; ended by ``stack``."""
    module, *arguments = command
    return _told_port([sys.executable, "-m", f"benchmarks.{module}", *arguments], family, stack)


def _told_port(command: Sequence[str], family: Family, stack: ExitStack) -> str:
    """HOST:PORT of a server that prints its port; ended by ``stack``."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {MARK: family.mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.wait)
    stack.callback(family.end)
    assert process.stdout is not None
    with process.stdout as said:
        if not (port := said.readline()):
            raise NotStarted(f"{Path(command[0]).name} ended with status {process.wait()}")
    return f"127.0.0.1:{int(port)}"


_FRAME = 40
"""Bytes of a ModelInferResponse without the tensor: names, type and shape."""


# -- common parts -----------------------------------------------------------------


def _family(kind: Kind) -> Family:
    return Family(f"{kind.name}-{os.getpid()}-{time.monotonic_ns()}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _tail(log: IO[str]) -> str:
    return Path(log.name).read_text(errors="replace")[-3000:]


TRITON_VERSION = f"2.51.0, from nvidia-pytriton {version_of('triton', 'nvidia-pytriton')}"

KINDS = (
    Kind(INFERD, "inferd", __version__, (_UNARY, _STREAM, _SHARED_MEMORY), _start_inferd, peer=False, halts=False),
    # A daemon either maps shared memory or copies it: comparing both takes two daemons.
    Kind(
        INFERD_MAPPED,
        "inferd, mapped",
        __version__,
        (_SHARED_MEMORY, _STREAMED_SHARED_MEMORY),
        _start_inferd,
        peer=False,
        halts=False,
    ),
    Kind(ECHO, "bare grpc.aio echo", "", (_UNARY, _STREAM), _start_echo, peer=False, halts=False),
    Kind(
        COMPUTING_ECHO,
        "grpc.aio echo that computes",
        "",
        (_UNARY, _STREAM),
        _start_computing_echo,
        peer=False,
        halts=False,
    ),
    Kind(FLOOR, "C++ floor", "", (_UNARY, _STREAM), _start_floor, peer=False, halts=False),
    Kind("triton", "Triton", TRITON_VERSION, (_UNARY, _STREAM), _start_triton, halts=False),
    Kind("mlserver", "MLServer", version_of("mlserver"), (_UNARY,), _start_peer),
    Kind("kserve", "KServe SDK", version_of("kserve"), (_UNARY,), _start_peer),
    Kind("ray", "Ray Serve", version_of("ray"), (_UNARY,), _start_peer),
    Kind("bentoml", "BentoML", version_of("bentoml"), (_HTTP,), _start_peer),
    Kind("litserve", "LitServe", version_of("litserve"), (_HTTP,), _start_peer),
)
