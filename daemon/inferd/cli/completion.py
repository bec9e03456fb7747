"""``inferd completion``: a script for the shell that completes commands and flags."""

import argparse
from collections.abc import Iterator
from typing import Any

from inferd.cli.parser import HelpAll

_SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``inferd completion``."""
    parser.add_argument("shell", choices=_SHELLS, metavar="SHELL", help="bash, zsh or fish")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from inferd.cli.main import parser

    program = parser()
    files = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
    for action in _actions(program):
        if isinstance(action, HelpAll):
            action.reveal()
    for action in _actions(program):
        kind: Any = action.metavar
        if kind in files:
            # shtab reads this attribute; argparse does not declare it.
            setattr(action, "complete", files[kind])  # noqa: B010
        elif isinstance(kind, str) and kind.startswith("{"):
            action.choices = kind.strip("{}").split(",")
    print(shtab.complete(program, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of ``parser`` and of all its subcommands."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list them
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                yield from _actions(command)
