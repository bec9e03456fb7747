"""``inferd demo``: get the demonstration models, and identify files with one of them."""

import argparse
import sys
from pathlib import Path

from inferd.cli import connection
from inferd.demo import models
from inferd.errors import InferdError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags and subcommands of ``inferd demo``."""
    commands = parser.add_subparsers(dest="demo_command", required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="download the demonstration models into a model repository")
    fetch.add_argument(
        "--to", type=Path, default=Path("models"), metavar="DIR", help="the repository (default: models)"
    )

    classify = commands.add_parser("classify", help="say what kind of file each FILE is")
    classify.add_argument("files", nargs="+", metavar="FILE")
    classify.add_argument(
        "--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="the daemon to ask (default: 127.0.0.1:8001)"
    )
    connection.add_arguments(classify)
    classify.add_argument(
        "--models",
        type=Path,
        default=Path("models"),
        metavar="DIR",
        help="where `inferd demo fetch` put the models, for their labels (default: models)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; the exit status is 1 when anything failed, and stderr has said what."""
    try:
        if arguments.demo_command == "fetch":
            models.fetch(arguments.to, lambda step: print(step, flush=True))
            print(f"the demo models are in {arguments.to}")
            return 0
        from inferd.cli.classify import classify

        return classify(arguments)
    except InferdError as error:
        print(f"inferd: {error}", file=sys.stderr)
        return 1
