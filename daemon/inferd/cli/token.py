"""``inferd token``: create a secret for a client, and the lines that make it known to the daemon."""

import argparse
import secrets
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from inferd.cli.parser import add_command, commands_of, duration
from inferd.config import tokens

# Lets scanners for secrets in source code recognise it.
_PREFIX = "inferd_"
_RANDOM_BYTES = 32
_LONGEST = 99_999 * 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags and subcommands of ``inferd token``."""
    parser.description = "Make a token for a client, and the lines that make it known to the daemon."
    commands = commands_of(parser, "token_command")
    new = add_command(
        commands,
        "new",
        "Make a token, and its lines for the tokens file",
        "Print the lines for the daemon's tokens file on standard output, and the client's token on standard error. "
        "Only this output has the token; the file has its hash.",
    )
    new.add_argument("--name", required=True, type=_name, metavar="NAME", help="Name of the client in logs and quotas")
    new.add_argument(
        "--scope",
        required=True,
        action="append",
        choices=tokens.SCOPES,
        help="What the client may do; repeat it for several scopes",
    )
    new.add_argument(
        "--expires",
        type=duration(1, _LONGEST, bare=False),
        metavar="DURATION",
        help="Lifetime of the token, such as 12h, 90d or 8w (default: unlimited)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Create the token and print it."""
    secret = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    expires = None if arguments.expires is None else datetime.now(UTC) + timedelta(seconds=arguments.expires)
    print(entry(arguments.name, arguments.scope, secret, expires), end="")
    sys.stdout.flush()
    print(f"the secret, shown only once: {secret}", file=sys.stderr)
    return 0


def entry(name: str, scopes: list[str], secret: str, expires: datetime | None) -> str:
    """The lines for the tokens file that describe ``secret``."""
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
