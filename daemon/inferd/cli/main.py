"""``inferd``: picks the command and turns errors into one sentence and an exit code."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from inferd import __version__
from inferd.cli import exit_status
from inferd.cli.parser import Parser, add_command, commands_of
from inferd.errors import ConfigurationError, InferdError


class Command(NamedTuple):
    """A command, without what it needs to run: in ``inferd.cli``, the module ``flags`` has its ``add_arguments`` and
    the module ``runs`` its ``run``, which takes the arguments and returns the exit code."""

    summary: str
    flags: str
    runs: str
    usage: str | None = None
    description: str = ""


COMMANDS = {
    "serve": Command("Serve a model repository", "settings_flags", "serve_command", "inferd serve [SETTINGS]"),
    "check": Command(
        "Validate the settings and the model repository", "check_command", "check_command", "inferd check [SETTINGS]"
    ),
    "tune": Command("Measure the best settings of each model", "tune", "tune"),
    "bench": Command("Load a server and measure throughput and latency", "bench", "bench"),
    "top": Command(
        "Watch the models of a running daemon",
        "top",
        "top",
        description="Watch the models of a running daemon: throughput, latency and queues, busiest first. ? explains "
        "the columns, q quits.",
    ),
    "dashboards": Command("Write the Grafana dashboards and Prometheus rules", "dashboards", "dashboards"),
    "install-units": Command(
        "Write the systemd units",
        "install_units",
        "install_units",
        description="Write inferd.service, inferd@.service and an example of their settings.",
    ),
    "rollover": Command(
        "Replace a running instance with another, for an upgrade",
        "rollover",
        "rollover",
        description="Start an instance on the port of another, wait until it serves, then end the other. Both need "
        "reuse_port. When a step fails, the old instance keeps serving.",
    ),
    "token": Command("Make a token for a client", "token", "token"),
    "demo": Command("Fetch the demo models and send them real input", "demo", "demo"),
    "completion": Command(
        "Print a shell completion script",
        "completion",
        "completion",
        description="Print a completion script for bash, zsh or fish. For bash: "
        "inferd completion bash > ~/.local/share/bash-completion/completions/inferd",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in ``argv``; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    # Only the chosen command has its flags: the flags of all would need every module imported.
    arguments = parser(argv[:1]).parse_args(argv)
    # For a daemon of several processes, which starts each with this command line and some more flags.
    arguments.command_line = argv
    try:
        status = int(_module(COMMANDS[arguments.command].runs).run(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has had enough, as in `inferd top --json | head`. Python flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_status.BROKEN_PIPE
    except ConfigurationError as error:
        for problem in error.every:
            print(f"inferd: {problem}", file=sys.stderr)
        return exit_status.CONFIGURATION
    except InferdError as error:
        print(f"inferd: {error}", file=sys.stderr)
        return exit_status.FAILED_START


def parser(complete: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of all commands; those in ``complete`` have their flags."""
    program = Parser(prog="inferd", description="Serves OpenVINO models over the Open Inference Protocol.")
    program.add_argument(
        "--version", action="version", version=f"inferd {__version__}", help="Show the version and exit"
    )
    commands = commands_of(program, "command")
    for name, command in COMMANDS.items():
        added = add_command(commands, name, command.summary, command.description, usage=command.usage)
        if name in complete:
            _module(command.flags).add_arguments(added)
    return program


def _module(name: str) -> Any:
    return import_module(f"inferd.cli.{name}")


if __name__ == "__main__":
    sys.exit(main())
