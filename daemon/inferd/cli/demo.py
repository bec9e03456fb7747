"""``inferd demo``: fetch the demo models, and identify files with one of them."""

import argparse
import sys
from pathlib import Path

from inferd.cli import connection
from inferd.cli.parser import add_command, commands_of
from inferd.errors import InferdError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags and subcommands of ``inferd demo``."""
    parser.description = "Fetch the demo models, and ask one of them what kind of file each of yours is."
    commands = commands_of(parser, "demo_command")
    fetch = add_command(commands, "fetch", "Download the demo models into a model repository")
    fetch.add_argument("--to", type=Path, default=Path("models"), metavar="DIR", help="Repository (default: models)")
    classify = add_command(commands, "classify", "Say what kind of file each FILE is")
    classify.add_argument("files", nargs="+", metavar="FILE")
    classify.add_argument(
        "--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="Daemon to call (default: 127.0.0.1:8001)"
    )
    classify.add_argument(
        "--models",
        type=Path,
        default=Path("models"),
        metavar="DIR",
        help="Repository that `inferd demo fetch` wrote, for the labels (default: models)",
    )
    connection.add_arguments(classify)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status is 1 when anything failed, with the reason on stderr."""
    try:
        if arguments.demo_command == "fetch":
            from inferd.demo import models

            models.fetch(arguments.to, lambda step: print(step, flush=True))
            print(f"the demo models are in {arguments.to}")
            return 0
        from inferd.cli.classify import classify

        return classify(arguments)
    except InferdError as error:
        print(f"inferd: {error}", file=sys.stderr)
        return 1
