"""``inferd rollover``: from one instance of the systemd unit to another, without a moment in which none serves."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence

from inferd.systemd.status_line import StatusLine

Systemctl = Callable[[Sequence[str]], "tuple[int, str]"]
"""Runs systemctl with these arguments: its exit status, and what it wrote to stdout."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``inferd rollover``."""
    parser.add_argument(
        "--from", required=True, dest="old", metavar="UNIT", help="Instance that serves, such as inferd@blue"
    )
    parser.add_argument(
        "--to", required=True, dest="new", metavar="UNIT", help="Instance that takes over, such as inferd@green"
    )
    parser.add_argument(
        "--fewer", action="store_true", help="Go on even if the new instance serves fewer models than the old one"
    )


def run(arguments: argparse.Namespace) -> int:
    """Roll over; 0 when the new instance serves and the old one has ended. After a failure the old one still serves."""
    return rollover(arguments.old, arguments.new, fewer=arguments.fewer, systemctl=_systemctl)


def rollover(old: str, new: str, *, fewer: bool, systemctl: Systemctl) -> int:
    """Start ``new``, wait until it serves, end ``old``; with ``fewer`` even if that loses models."""
    if old == new:
        return _failed("--from and --to are the same unit")
    if _shown(systemctl, old, "ActiveState") != "active":
        return _failed(f"{old} is not active; to start {new} anyway: systemctl start {new}")
    if (state := _shown(systemctl, new, "ActiveState")) in ("active", "activating", "deactivating", "reloading"):
        return _failed(f"{new} is already {state}; if it is a leftover: systemctl stop {new}")
    print(f"starting {new}", flush=True)
    # Returns when the daemon has reported READY=1, or could not be started.
    status, _ = systemctl(["start", new])
    if status:
        return _failed(f"{new} did not start, {old} still serves; see: journalctl --unit {new}")
    before, after = (StatusLine.read(_shown(systemctl, unit, "StatusText")) for unit in (old, new))
    print(f"{old}: {before or 'no status'}; {new}: {after or 'no status'}", flush=True)
    if before and after and after.serving < before.serving and not fewer:
        systemctl(["stop", new])
        return _failed(f"{new} serves fewer models than {old}, so {old} still serves; to go on anyway: --fewer")
    print(f"ending {old}", flush=True)
    status, _ = systemctl(["stop", old])
    if status:
        return _failed(f"{old} did not end, so both serve; see: journalctl --unit {old}")
    if _shown(systemctl, old, "UnitFileState") == "enabled":
        # The next boot must start what serves now.
        systemctl(["enable", "--quiet", new])
        systemctl(["disable", "--quiet", old])
    print(f"{new} serves")
    return 0


def _shown(systemctl: Systemctl, unit: str, name: str) -> str:
    return systemctl(["show", "--property", name, "--value", unit])[1].strip()


def _systemctl(arguments: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(["systemctl", *arguments], check=False, stdout=subprocess.PIPE, text=True)  # noqa: S603, S607 - found as the user's shell would
    except FileNotFoundError:
        print("inferd: systemctl not found", file=sys.stderr)
        return 127, ""
    return done.returncode, done.stdout


def _failed(problem: str) -> int:
    print(f"inferd: {problem}", file=sys.stderr)
    return 1
