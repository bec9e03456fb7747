"""A virtual environment for each peer, with the packages that its requirements.txt pins; and the compiled floor."""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent


class NotInstalled(Exception):
    """A peer that cannot be installed here, and why."""


def python_of(peer: str, root: Path, report: Callable[[str], None]) -> Path:
    """The interpreter of ``peer``'s environment below ``root``, which is made first if it is not up to date.

    Raises NotInstalled with pip's own reason.
    """
    pins = HERE / peer / "requirements.txt"
    folder = root / peer / ".venv"
    stamp, wanted = folder / "pins", hashlib.sha256(sys.version.encode() + pins.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    report(f"installing {peer} into {folder}; the first time this takes a minute or two")
    venv.create(folder, with_pip=True, clear=True)
    command = [python, "-m", "pip", "install", "--quiet", "--requirement", pins]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip gave no reason"]
        raise NotInstalled(lines[-1].removeprefix("ERROR: "))
    stamp.write_text(wanted)
    return python


def version_of(peer: str, package: str = "") -> str:
    """The version of ``package``, or else of ``peer``, that the peer's requirements.txt pins."""
    for line in (HERE / peer / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name == (package or peer):
            return version
    raise ValueError(f"{peer}/requirements.txt does not pin {package or peer}")


def floor_program(root: Path, report: Callable[[str], None]) -> Path:
    """The program of floor/floor.cpp below ``root``, which is compiled first if it is not up to date.

    With gRPC from the system and OpenVINO from this Python's wheel, headers included. Raises NotInstalled with what is
    missing, or the compiler's own reason.
    """
    source, program = HERE / "floor" / "floor.cpp", root / "floor" / "floor"
    wheel = Path(str(getattr(find_spec("openvino"), "origin", ""))).parent
    libraries = sorted((wheel / "libs").glob("libopenvino.so.*"))
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    needed = {
        "a C++ compiler (Debian: g++)": compiler,
        "gRPC for C++ (Debian: libgrpc++-dev)": _GRPC_HEADER.exists(),
        "the headers of OpenVINO's wheel": (wheel / "include" / "openvino" / "openvino.hpp").exists(),
        "the library of OpenVINO's wheel": libraries,
    }
    if missing := [what for what, found in needed.items() if not found]:
        raise NotInstalled(f"not compiled: this machine lacks {', '.join(missing)}")
    command = [str(compiler), "-std=c++17", "-O2", "-o", str(program), str(source), "-isystem", str(wheel / "include")]
    command += [str(libraries[0]), f"-Wl,-rpath,{wheel / 'libs'}", "-lgrpc++", "-lgrpc", "-lgpr"]
    stamp = program.with_name("stamp")
    wanted = hashlib.sha256(" ".join(command).encode() + source.read_bytes()).hexdigest()
    if program.exists() and stamp.exists() and stamp.read_text() == wanted:
        return program
    report(f"compiling {program}; this takes half a minute")
    program.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["the compiler gave no reason"]
        raise NotInstalled(f"not compiled: {lines[0]}")
    stamp.write_text(wanted)
    return program


_GRPC_HEADER = Path("/usr/include/grpcpp/generic/async_generic_service.h")
