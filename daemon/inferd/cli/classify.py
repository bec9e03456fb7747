"""``inferd demo classify``: ask a daemon that serves magika for the type of each file."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from inferd.cli import connection
from inferd.demo import magika
from inferd.errors import one_line
from inferd.rpc.client import InferenceClient
from inferd.rpc.rpc_client import CallFailed, TlsMismatch


def classify(arguments: argparse.Namespace) -> int:
    """Print a line for each file; the exit status is 1 when one could not be read, with the reason on stderr.

    Raises InferdError if the server or its models are not what the demo needs.
    """
    rules = magika.MagikaRules.read(arguments.models / magika.MODEL)
    width = max(len(one_line(name)) for name in arguments.files)
    status = 0
    with InferenceClient(arguments.server, credentials=connection.credentials_from(arguments)) as client:
        try:
            client.server_ready()
        except TlsMismatch:
            raise
        except CallFailed as error:
            return _failed(
                f"no daemon responds at {arguments.server} ({error.code}); start one with `make serve`, or with"
                f" `inferd serve --model-repository {arguments.models} --grpc-bind {arguments.server}`"
            )
        for name, verdict in _verdicts(client, rules, arguments.files):
            if isinstance(verdict, OSError):
                status = _failed(f"{one_line(name)}: {verdict.strerror}")
            else:
                print(f"{one_line(name):{width}}  {verdict.label:12}  {verdict.score * 100:5.1f} %", flush=True)
    return status


def _failed(problem: str) -> int:
    print(f"inferd: {problem}", file=sys.stderr)
    return 1


def _verdicts(
    client: InferenceClient, rules: magika.MagikaRules, names: list[str]
) -> Iterator[tuple[str, magika.Classification | OSError]]:
    for name in names:
        try:
            seen = rules.examine(Path(name))
        except OSError as error:
            yield name, error
            continue
        if not isinstance(seen, magika.Classification):
            scores = client.infer(magika.MODEL, {magika.INPUT: seen[None]}, [magika.OUTPUT])[magika.OUTPUT]
            seen = rules.verdict(scores[0])
        yield name, seen
