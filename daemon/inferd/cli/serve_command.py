"""``inferd serve`` with the arguments that were given."""

import argparse

from inferd.cli.settings_flags import settings_of


def run(arguments: argparse.Namespace) -> int:
    """Serve. Raises InferdError if the settings can't be used or start-up fails."""
    settings = settings_of(arguments)
    # The import takes a second, which a mistake in the settings need not wait for.
    from inferd.cli.serve import serve

    return serve(settings, lambda: settings_of(arguments), arguments.command_line)
