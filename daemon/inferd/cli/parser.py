"""The command line parser: help in groups, and errors with the value, what is allowed and the likely spelling."""

import argparse
from collections.abc import Callable
from typing import Any

from inferd.config import quantities
from inferd.errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """The parser of the program and of each command: subcommands get the class of their parent."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**({"formatter_class": _Formatter} | more | {"add_help": False}))
        self._positionals.title, self._optionals.title = "Arguments", "Options"
        self.add_argument("-h", "--help", action="help", help="Show this help and exit")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an unknown argument is an error of the command that it was given to."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            if not name.startswith("-"):
                self.error(f"unexpected argument {unknown[0]!r}")
            self.error(f"unknown flag {name}{did_you_mean(name, self._flags(), '--')}")
        return found, unknown

    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        allowed = list(map(str, action.choices))
        meant = did_you_mean(str(value), allowed)
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - argparse has no public name for it
            self.error(f"unknown command {value!r}{meant}; allowed: {', '.join(allowed)}")
        raise argparse.ArgumentError(action, f"got {value!r}{meant}; allowed: {', '.join(allowed)}")


class HelpAll(argparse.Action):
    """``--help-all``: also shows the flags that ``--help`` leaves out. ``full`` is the help of each flag then."""

    def __init__(self, *flags: str, **more: Any) -> None:
        super().__init__(list(flags), argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **more)
        self.full: dict[argparse.Action, str] = {}

    def reveal(self) -> None:
        """Give every flag its full help."""
        for action, text in self.full.items():
            action.help = text

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        self.reveal()
        parser.print_help()
        parser.exit()


class _Formatter(argparse.HelpFormatter):
    """A wider column of flags, so that most have their help on the same line; a text of several lines keeps them."""

    def __init__(self, prog: str, *arguments: Any, **more: Any) -> None:
        super().__init__(prog, *arguments, **(more | {"max_help_position": 32}))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def commands_of(parser: argparse.ArgumentParser, dest: str) -> "argparse._SubParsersAction[Any]":
    """The subcommands of ``parser``; the chosen one's name is in ``dest``."""
    return parser.add_subparsers(dest=dest, required=True, title="Commands", metavar="COMMAND")


def add_command(
    commands: "argparse._SubParsersAction[Any]", name: str, summary: str, description: str = "", **more: Any
) -> Any:
    """A subcommand: ``summary`` is its line in its parent's help, ``description`` the beginning of its own help."""
    return commands.add_parser(name, help=summary, description=description or f"{summary}.", **more)


# -- what flags allow ---------------------------------------------------------------


def flag_type(read: Callable[[str], Any], allowed: str) -> Callable[[str], Any]:
    """An argparse type: ``read`` raises ValueError for anything that is not ``allowed``."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text!r}; allowed: {allowed}") from None

    return checked


def duration(least: float, most: float, *, exclusive: bool = False, bare: bool = True) -> Callable[[str], float]:
    """Seconds of ``20ms``, and with ``bare`` of ``1.5``, in ``least..most``; with ``exclusive`` above ``least``."""

    def read(text: str) -> float:
        try:
            seconds = quantities.seconds_of(text)
        except ValueError:
            if not bare:
                raise
            seconds = float(text)
        if not least <= seconds <= most or (exclusive and seconds == least):
            raise ValueError
        return seconds

    low, high = quantities.duration(least), quantities.duration(most)
    bounds = f"above {low} and up to {high}" if exclusive else f"of {low}..{high}"
    return flag_type(read, f"a duration {bounds}, such as {quantities.DURATION_EXAMPLE}")


def integer(least: int, most: int) -> Callable[[str], int]:
    """A whole number of ``least..most``."""

    def read(text: str) -> int:
        if not least <= (number := int(text)) <= most:
            raise ValueError
        return number

    return flag_type(read, f"a whole number of {least}..{most}")
