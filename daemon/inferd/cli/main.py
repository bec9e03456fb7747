"""``inferd``: picks the command and turns errors into one sentence and an exit code."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inferd import __version__, logs
from inferd.cli import exit_status
from inferd.config import daemon
from inferd.errors import ConfigurationError, InferdError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in ``argv``; returns the exit code."""
    parser, sources = _parser()
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments, sources, sys.argv[1:] if argv is None else argv)
    except ConfigurationError as error:
        for problem in error.every:
            print(f"inferd: {problem}", file=sys.stderr)
        return exit_status.CONFIGURATION
    except InferdError as error:
        print(f"inferd: {error}", file=sys.stderr)
        return exit_status.FAILED_START


def _run(arguments: argparse.Namespace, sources: dict[str, Any], argv: Sequence[str]) -> int:
    # Commands are imported when they run: only the daemon needs OpenVINO, and importing it takes a second.
    if arguments.command == "demo":
        from inferd.cli import demo

        return demo.run(arguments)
    if arguments.command == "tune":
        from inferd.cli import tune

        return tune.run(arguments, sources["tune"])
    if arguments.command == "token":
        from inferd.cli import token

        return token.run(arguments)
    if arguments.command == "bench":
        from inferd.cli import bench

        return bench.run(arguments)
    if arguments.command == "top":
        from inferd.cli import top

        return top.run(arguments)
    if arguments.command == "install-units":
        from inferd.cli import install_units

        return install_units.run(arguments)
    if arguments.command == "rollover":
        from inferd.cli import rollover

        return rollover.run(arguments)
    given = {name: value for name, value in vars(arguments).items() if name in daemon.Settings.model_fields}
    settings = daemon.load(arguments.config, sources[arguments.command], given)
    if arguments.command == "check":
        return _check(settings, quick=arguments.quick)
    from inferd.cli.serve import serve

    return serve(settings, lambda: daemon.load(arguments.config, sources[arguments.command], given), argv)


def _check(settings: daemon.Settings, *, quick: bool) -> int:
    from inferd.app import engine_of
    from inferd.cli.check import check
    from inferd.cli.check_daemon import problems, warnings
    from inferd.deployment.settings import source_of

    logs.configure("error", settings.log_format)
    for warning in warnings(settings):
        print(f"warning {warning}")
    wrong = list(problems(settings))
    for problem in wrong:
        print(f"inferd: {problem}", file=sys.stderr)
    # The user that checks may not be the one that serves: the cache keeps nothing that the daemon could not replace.
    engine = engine_of(settings.model_copy(update={"cache_max_bytes": 0}))
    look = engine.inspect if quick else engine.try_out
    status = check(settings, sys.stdout, lambda entry, version: look(source_of(entry, version)))
    return exit_status.CONFIGURATION if wrong else status


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    from inferd.cli import bench, demo, install_units, rollover, token, top, tune

    parser = argparse.ArgumentParser(
        prog="inferd", description="Serves OpenVINO models over the Open Inference Protocol."
    )
    parser.add_argument("--version", action="version", version=f"inferd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sources = {}
    for name, says in (("serve", "serve a model repository"), ("check", "validate configuration and repository")):
        command = commands.add_parser(name, help=says, description=says.capitalize() + ".")
        command.add_argument(
            "--config",
            type=Path,
            default=os.environ.get(daemon.CONFIG_VARIABLE),
            help=f"TOML file of settings [env: {daemon.CONFIG_VARIABLE}]",
        )
        sources[name] = daemon.flags(command)
        if name == "check":
            command.add_argument("--quick", action="store_true", help="read models without compiling and running them")
    sources["tune"] = tune.add_arguments(
        commands.add_parser("tune", help="find what each model serves best with, by measuring")
    )
    bench.add_arguments(
        commands.add_parser("bench", help="put a server under load: throughput, latency, what the server says of it")
    )
    top.add_arguments(
        commands.add_parser(
            "top",
            help="watch a running daemon: throughput, latency, queues",
            description="Watch a running daemon's models, those with the most to do first; q leaves.",
        )
    )
    install_units.add_arguments(
        commands.add_parser(
            "install-units",
            help="write the systemd units",
            description="Write inferd.service, inferd@.service and an example of their settings.",
        )
    )
    rollover.add_arguments(
        commands.add_parser(
            "rollover",
            help="replace a running instance by another, for an upgrade",
            description="Start an instance on the port of another, wait until it serves, then end the other. Both "
            "need reuse_port; what fails leaves the old instance serving.",
        )
    )
    token.add_arguments(commands.add_parser("token", help="make a secret for a client, and its line for the daemon"))
    demo.add_arguments(commands.add_parser("demo", help="fetch the demo models, and send them real input"))
    return parser, sources


if __name__ == "__main__":
    sys.exit(main())
