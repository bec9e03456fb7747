"""A flag for each setting of the daemon; ``--help`` shows those that most people use, ``--help-all`` all."""

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from inferd.cli.parser import HelpAll
from inferd.config.daemon import Group, Settings, load
from inferd.config.described import Described, described
from inferd.config.variables import CONFIG_VARIABLE, flag_of, variable_of

EPILOG = (
    "Each setting may also be a variable (INFERD_GRPC_BIND) or a key of the file (grpc_bind); a flag beats a variable, "
    "a variable the file. Durations: 20ms, 1.5s, 2m, 1h. Sizes: 512KiB, 64MiB, 4GiB."
)


def add_arguments(parser: argparse.ArgumentParser, shown: Collection[Group] = tuple(Group)) -> None:
    """Add ``--config``, ``--help-all`` and the settings. A setting that was not given has no value in the namespace.

    ``--help`` shows the common ones of the groups ``shown``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=os.environ.get(CONFIG_VARIABLE),
        help=f"TOML file of settings [env: {CONFIG_VARIABLE}]",
    )
    help_all = HelpAll("--help-all", help="Show all settings and exit")
    parser._add_action(help_all)  # noqa: SLF001 - add_argument would not give it back with its type
    parser.epilog = EPILOG
    groups = {group: parser.add_argument_group(group.value) for group in Group}
    for setting in described():
        flag = _flag(groups[setting.group], setting)
        default = f"(default: {setting.default})" if setting.default else "(required)"
        first = setting.meaning.split(". ")[0].rstrip(".")
        help_all.full[flag] = _plain(f"{setting.meaning} {default} [env: {variable_of(setting.name)}]")
        flag.help = _plain(f"{first} {default}") if setting.common and setting.group in shown else argparse.SUPPRESS


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that ``arguments``, the environment and the file give. Raises ConfigurationError."""
    return load(arguments.config, vars(arguments))


def _flag(flags: argparse._ArgumentGroup, setting: Described) -> argparse.Action:
    flag = flag_of(setting.name)
    if setting.switch:
        return flags.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
    return flags.add_argument(flag, metavar=setting.kind, default=argparse.SUPPRESS)


def _plain(text: str) -> str:
    """``text`` with per cent signs escaped for argparse."""
    return text.replace("%", "%%")
