"""A small Debian that boots with systemd-nspawn, for tests of what a service manager does with the daemon.

Making it takes a minute or two, so it is kept under .setup/; what a boot writes is gone at its end.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SITE_PACKAGES = "/opt/site-packages"
"""Where the project's dependencies are in the booted tree."""

_RELEASE, _PYTHON = "bookworm", (3, 11)
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "procps", "python3", "python3-venv")
_TREE = ROOT / ".setup" / f"debian-{_RELEASE}"
_BOOT_SECONDS = 240.0

_UNIT = """\
[Unit]
Description=What a test does in here
[Service]
Type=oneshot
ExecStart=python3 /scenario.py
ExecStopPost=systemctl poweroff --no-block
TimeoutStartSec=infinity
StandardOutput=append:/out/output
StandardError=inherit
"""


def missing() -> str:
    """What keeps this machine from booting one; "" where nothing does."""
    if os.geteuid() != 0:
        return "booting a tree with systemd-nspawn takes root"
    if absent := [command for command in ("systemd-nspawn", "debootstrap") if shutil.which(command) is None]:
        return f"there is no {' and no '.join(absent)} here"
    if sys.version_info[:2] != _PYTHON:
        return f"the tree has Python {_PYTHON[0]}.{_PYTHON[1]}, for which this environment's packages were not built"
    return ""


def boot(scenario: Path, binds: Mapping[Path, str], out: Path) -> None:
    """Boot the tree, run the Python program ``scenario`` in it as root, and return when all has ended.

    ``binds`` are files and folders of this machine and where they are seen there, read-only; ``out`` is /out
    and can be written to. Raises AssertionError where it does not come to its end.
    """
    tree = _made()
    unit = out / "scenario.service"
    unit.write_text(_UNIT)
    shown = {
        Path(sysconfig.get_path("platlib")): SITE_PACKAGES,
        scenario: "/scenario.py",
        unit: "/etc/systemd/system/scenario.service",
        **binds,
    }
    command = ["systemd-nspawn", "--boot", "--register=no", "--keep-unit", "--private-network", "--volatile=overlay"]
    command += ["--quiet", "--console=read-only", f"--directory={tree}", f"--bind={out}:/out"]
    command += [f"--bind-ro={path}:{there}" for path, there in shown.items()]
    command += ["systemd.wants=scenario.service"]
    console = out / "console"
    with console.open("w") as log:
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=_BOOT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the tree had not halted after {_BOOT_SECONDS:.0f} s\n{said(out)}") from None


def said(out: Path) -> str:
    """What the scenario wrote, and the console's last lines, for messages of failing tests."""
    output = out / "output"
    lines = (out / "console").read_text(errors="replace").splitlines()[-30:]
    return "\n".join(["--- scenario", output.read_text() if output.exists() else "(nothing)", "--- console", *lines])


def _made() -> Path:
    with (ROOT / ".setup" / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _TREE.is_dir():
            half = _TREE.with_suffix(".half")
            # An interrupted debootstrap leaves /proc mounted there: never remove what lies in that.
            subprocess.run(["umount", "--lazy", "--quiet", str(half / "proc")], stderr=subprocess.DEVNULL, check=False)
            if not os.path.ismount(half / "proc"):
                shutil.rmtree(half, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _RELEASE, str(half)]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            assert done.returncode == 0, f"debootstrap failed:\n{done.stdout[-2000:]}"
            half.rename(_TREE)
    return _TREE
