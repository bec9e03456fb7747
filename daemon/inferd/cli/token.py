"""``inferd token``: make a secret for a client, and the lines by which the daemon knows it."""

import argparse
import re
import secrets
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from inferd.config import tokens

# Lets scanners for secrets in source code know what they have found.
_PREFIX = "inferd_"
_RANDOM_BYTES = 32
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags and subcommands of ``inferd token``."""
    commands = parser.add_subparsers(dest="token_command", required=True, metavar="COMMAND")
    new = commands.add_parser(
        "new",
        help="make a secret, and the lines for the tokens file",
        description="Print the lines for the daemon's tokens file on standard output, and on standard error the secret "
        "for the client. The secret is nowhere else: the file has its hash.",
    )
    new.add_argument("--name", required=True, type=_name, metavar="NAME", help="what logs and quotas call the client")
    new.add_argument(
        "--scope",
        required=True,
        action="append",
        choices=tokens.SCOPES,
        help="what it may do; give it several times for several",
    )
    new.add_argument(
        "--expires", type=_span, metavar="SPAN", help="for how long it holds, such as 12h, 90d or 8w (default: ever)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked."""
    secret = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    expires = None if arguments.expires is None else datetime.now(UTC) + arguments.expires
    print(entry(arguments.name, arguments.scope, secret, expires), end="")
    sys.stdout.flush()
    print(f"the secret, which is not shown again: {secret}", file=sys.stderr)
    return 0


def entry(name: str, scopes: list[str], secret: str, expires: datetime | None) -> str:
    """The lines of the tokens file for ``secret``."""
    lines = [
        "[[token]]",
        f'name = "{name}"',
        f'sha256 = "{sha256(secret.encode()).hexdigest()}"',
        "scopes = [" + ", ".join(f'"{scope}"' for scope in dict.fromkeys(scopes)) + "]",
    ]
    if expires is not None:
        lines.append(f"expires = {expires:%Y-%m-%dT%H:%M:%SZ}")
    return "\n".join(lines) + "\n"


def _name(text: str) -> str:
    if not tokens.is_token_name(text):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1 to 64 of letters, digits and _.@:/-")
    return text


def _span(text: str) -> timedelta:
    if (found := re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)) is None:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number of hours, days or weeks: 12h, 90d, 8w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
