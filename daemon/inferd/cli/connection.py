"""The flags by which a command that calls a daemon identifies itself and checks the daemon."""

import argparse
import os
from pathlib import Path

from inferd import regular_file
from inferd.config.variables import TOKEN_VARIABLE
from inferd.errors import ConfigurationError
from inferd.security.client_credentials import ClientCredentials


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add these flags to such a command."""
    flags = parser.add_argument_group("TLS and tokens")
    flags.add_argument("--ca", type=Path, metavar="FILE", help="Use TLS, and trust the CAs in this PEM file")
    flags.add_argument(
        "--server-name", default="", metavar="NAME", help="Name in the server's certificate (default: its address)"
    )
    flags.add_argument("--client-cert", type=Path, metavar="FILE", help="Certificate of the client, PEM")
    flags.add_argument("--client-key", type=Path, metavar="FILE", help="Key of the client's certificate, PEM")
    flags.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"File that holds the client's token [env: {TOKEN_VARIABLE}]"
    )


def credentials_from(arguments: argparse.Namespace) -> ClientCredentials:
    """The credentials from the flags or the variable. Raises ConfigurationError."""
    if (arguments.client_cert is None) != (arguments.client_key is None):
        raise ConfigurationError("flag --client-cert", "", "goes with --client-key: give both or neither")
    for flag in ("client_cert", "server_name"):
        if getattr(arguments, flag) and arguments.ca is None:
            raise ConfigurationError(f"flag --{flag.replace('_', '-')}", "", "goes with --ca, which turns TLS on")
    return ClientCredentials(
        arguments.ca, arguments.client_cert, arguments.client_key, arguments.server_name, _token(arguments.token_file)
    )


def _token(file: Path | None) -> str:
    if file is None:
        source, text = f"variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE, "")
    else:
        source = str(file)
        try:
            text = regular_file.read(file).decode()
        except UnicodeDecodeError:
            raise ConfigurationError(source, "", "not UTF-8 text") from None
        except OSError as error:
            raise ConfigurationError(source, "", error.strerror or "can't be read") from None
        if not text.strip():
            raise ConfigurationError(source, "", "contains no token")
    token = text.strip()
    # gRPC would report a line break as an internal error. The text is a secret, so no message shows it.
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(source, "", "contains something other than a token")
    return token
