"""``inferd install-units``: write the systemd units, with the path of this command in them."""

import argparse
import sys
from pathlib import Path

# The units hide these folders from the daemon (ProtectHome=, PrivateTmp=), its own program included.
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - looked for, not written to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``inferd install-units``."""
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("/etc/systemd/system"),
        metavar="DIR",
        help="Where to write the units (default: /etc/systemd/system)",
    )
    parser.add_argument(
        "--settings-to",
        type=Path,
        default=Path("/etc/inferd"),
        metavar="DIR",
        help="Where to write inferd.env, unless it exists (default: /etc/inferd)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the units and print the next step; the exit status is 1 when that failed."""
    # Not resolved: inside a virtual environment the interpreter may be a link to one outside.
    executable = Path(sys.executable).with_name("inferd")
    if hidden := next((h for h in _HIDDEN if executable.is_relative_to(h)), None):
        return _failed(
            f"{executable} can't be run by the units, which hide {hidden} from the daemon; install inferd elsewhere,"
            " for example: python3 -m venv /opt/inferd && /opt/inferd/bin/pip install inferd"
        )
    from inferd.config import reference
    from inferd.systemd import units

    settings = arguments.settings_to / "inferd.env"
    try:
        for name in units.UNITS:
            text = units.unit(name, str(executable), "Written by `inferd install-units`.")
            _write(arguments.to / name, text)
        if settings.exists():
            print(f"kept   {settings}, which exists already")
        else:
            _write(settings, reference.environment_file())
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}")
    print(f"next:  edit {settings}, then: systemctl daemon-reload && systemctl enable --now inferd")
    return 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"wrote  {path}")


def _failed(problem: str) -> int:
    print(f"inferd: {problem}", file=sys.stderr)
    return 1
