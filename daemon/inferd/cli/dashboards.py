"""``inferd dashboards export``: write the Grafana dashboards and Prometheus rules that come with inferd."""

import argparse
import sys
from pathlib import Path

import inferd
from inferd.cli.parser import add_command, commands_of
from inferd.errors import InferdError

_PACKAGE = Path(inferd.__file__).parent
# A wheel carries the files inside the package; an editable installation runs next to the repository's own.
_PLACES = (_PACKAGE / "grafana", _PACKAGE.parent.parent / "grafana")
_PARTS = ("dashboards/*.json", "prometheus/*.yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags and subcommands of ``inferd dashboards``."""
    commands = commands_of(parser, "dashboards_command")
    export = add_command(
        commands,
        "export",
        "Write the dashboards and rules to a folder",
        "Write the Grafana dashboards to DIR/dashboards, and the Prometheus rules with an example of "
        "prometheus.yml to DIR/prometheus. A file that differs is replaced only with --force.",
    )
    export.add_argument("folder", type=Path, metavar="DIR", help="Folder, created if it does not exist")
    export.add_argument("--force", action="store_true", help="Replace files that differ")


def run(arguments: argparse.Namespace) -> int:
    """Write the files and name each; the exit status is 1 when one already differs, and then nothing is written."""
    try:
        return _export(files(), arguments.folder, force=arguments.force)
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}")


def files() -> dict[Path, bytes]:
    """Path below the export's folder -> content. Raises InferdError when the installation lacks them."""
    for place in _PLACES:
        found = [path for part in _PARTS for path in sorted(place.glob(part))]
        if found:
            return {path.relative_to(place): path.read_bytes() for path in found}
    raise InferdError(f"this installation of inferd has no dashboards: {_PLACES[0]} is missing")


def _export(wanted: dict[Path, bytes], folder: Path, *, force: bool) -> int:
    present = {name: (folder / name).read_bytes() for name in wanted if (folder / name).exists()}
    differing = [name for name, content in present.items() if content != wanted[name]]
    if differing and not force:
        for name in differing:
            print(f"inferd: {folder / name} exists and differs", file=sys.stderr)
        return _failed("nothing written; --force replaces these files")
    for name, content in wanted.items():
        target = folder / name
        if present.get(name) == content:
            print(f"unchanged  {target}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        print(f"{'replaced' if name in present else 'wrote':<9}  {target}")
    return 0


def _failed(problem: str) -> int:
    print(f"inferd: {problem}", file=sys.stderr)
    return 1
