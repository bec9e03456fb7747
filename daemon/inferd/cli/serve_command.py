"""``inferd serve`` with the arguments that were given."""

import argparse

from inferd.cli.settings_flags import settings_of


def run(arguments: argparse.Namespace) -> int:
    """Serve. Raises InferdError where the settings can't be used or start-up fails."""
    settings = settings_of(arguments)
    # Takes a second to import, which a mistake in the settings need not wait for.
    from inferd.cli.serve import serve

    return serve(settings, lambda: settings_of(arguments), arguments.command_line)
