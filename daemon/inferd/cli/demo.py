"""``inferd demo``: get the demonstration models, and identify files with one of them."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from inferd.cli import connection
from inferd.demo import magika, models
from inferd.errors import InferdError, one_line
from inferd.rpc.caller import CallFailed
from inferd.rpc.client import Client


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
        return _classify(arguments)
    except InferdError as error:
        return _failed(str(error))


def _failed(problem: str) -> int:
    print(f"inferd: {problem}", file=sys.stderr)
    return 1


def _classify(arguments: argparse.Namespace) -> int:
    rules = magika.Rules.read(arguments.models / magika.MODEL)
    width = max(len(one_line(name)) for name in arguments.files)
    status = 0
    with Client(arguments.server, shown=connection.shown_by(arguments)) as client:
        try:
            client.server_ready()
        except CallFailed as error:
            return _failed(
                f"no daemon answers at {arguments.server} ({error.code}); start one with `make serve`, or with"
                f" `inferd serve --model-repository {arguments.models} --grpc-bind {arguments.server}`"
            )
        for name, verdict in _verdicts(client, rules, arguments.files):
            if isinstance(verdict, OSError):
                status = _failed(f"{one_line(name)}: {verdict.strerror}")
            else:
                print(f"{one_line(name):{width}}  {verdict.label:12}  {verdict.score * 100:5.1f} %", flush=True)
    return status


def _verdicts(client: Client, rules: magika.Rules, names: list[str]) -> Iterator[tuple[str, magika.Verdict | OSError]]:
    for name in names:
        try:
            seen = rules.examine(Path(name))
        except OSError as error:
            yield name, error
            continue
        if not isinstance(seen, magika.Verdict):
            scores = client.infer(magika.MODEL, {magika.INPUT: seen[None]}, [magika.OUTPUT])[magika.OUTPUT]
            seen = rules.verdict(scores[0])
        yield name, seen
