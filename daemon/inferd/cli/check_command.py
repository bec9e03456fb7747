"""``inferd check`` with the arguments that were given."""

import argparse
import sys

from inferd.cli import exit_status, settings_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``inferd check``."""
    parser.add_argument("--quick", action="store_true", help="Read models without compiling and running them")
    settings_flags.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the settings and the models. Raises InferdError if that can't be done."""
    settings = settings_flags.settings_of(arguments)

    from inferd import logs
    from inferd.cli.check import check
    from inferd.cli.check_daemon import problems, warnings
    from inferd.deployment.settings import source_of
    from inferd.engine.model import Engine

    logs.configure("error", settings.log_format)
    for warning in warnings(settings):
        print(f"warning {warning}")
    wrong = list(problems(settings))
    for problem in wrong:
        print(f"inferd: {problem}", file=sys.stderr)
    # The user who checks may not be the one who serves: write nothing to the cache that the daemon could not replace.
    engine = Engine.of(settings.model_copy(update={"cache_max_bytes": 0}))
    look = engine.inspect if arguments.quick else engine.try_out
    status = check(settings, sys.stdout, lambda entry, version: look(source_of(entry, version)))
    return exit_status.CONFIGURATION if wrong else status
