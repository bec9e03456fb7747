"""The tokens file: who may call, and what they may call.

    [[token]]
    name = "frontend"
    sha256 = "..."          # of the secret, which no file of the daemon contains
    scopes = ["infer"]
    expires = 2027-01-31    # the start of that day, UTC; or a date and time with its offset

    [[client]]              # a name in a certificate that tls_client_ca verified
    name = "batch.example"
    scopes = ["infer", "read"]
    shared_memory_keys = ["batch-"]  # prefixes of its keys; default: its name and a plus sign

No message here repeats a value: it could be a secret put into the wrong place.
"""

import re
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic import model_validator as validates_all

from inferd.config import toml_file
from inferd.config.allowed import Allowed
from inferd.config.problem import problem_of
from inferd.errors import ConfigurationError

Scope = Literal["infer", "read", "repository", "tuner"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_MOST = 1000

# The name of a token or a certificate; it appears in log lines and messages.
_TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:/-]{0,63}")
_CLIENT_NAME_LENGTH = 255


def is_token_name(text: str) -> bool:
    """Whether a token may have this name."""
    return _TOKEN_NAME.fullmatch(text) is not None


def _token_name(text: str) -> str:
    if not is_token_name(text):
        raise ValueError
    return text


def _client_name(text: str) -> str:
    if not (0 < len(text) <= _CLIENT_NAME_LENGTH and text.isprintable()):
        raise ValueError
    return text


def _key_beginning(text: str) -> str:
    text = text.removeprefix("/")
    if not re.fullmatch(r"[!-.0-~]{0,255}", text):
        raise ValueError
    return text


def default_keys(name: str) -> tuple[str, ...]:
    """The prefixes of the shared memory keys of the client ``name``, unless the file sets them.

    An escaped name contains no plus sign and no slash: characters not allowed in a key are escaped as in a URL. So no
    key belongs to two clients.
    """
    return (quote(name, safe="@:") + "+",)


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("is not the 64 hexadecimal digits of a SHA-256; `inferd token new` prints them")
    return value.lower()


def _timestamp(value: Any) -> float | None:
    match value:
        case None:
            return None
        case datetime():
            if value.tzinfo is None:
                raise ValueError(f"{value} has no offset from UTC; write it with one, such as {value}Z")
            return value.timestamp()
        case date():
            return datetime.combine(value, time(), UTC).timestamp()
    raise ValueError


def _tables(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not all(isinstance(one, dict | BaseModel) for one in value):
        raise ValueError("is not a list of tables; begin each with a line such as [[token]]")
    return tuple(value)


def _unique_scopes(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    for scope in scopes:
        if scopes.count(scope) > 1:
            raise ValueError(f"{scope} is listed {scopes.count(scope)} times; list each scope once")
    return scopes


class _TokensTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_Scopes = Annotated[
    tuple[Annotated[Scope, Allowed(", ".join(SCOPES), f"{', '.join(SCOPES[:-1])} and {SCOPES[-1]}")], ...],
    AfterValidator(_unique_scopes),
    Strict(False),
]


_Keys = Annotated[
    tuple[
        Annotated[
            str,
            AfterValidator(_key_beginning),
            Allowed(
                "the beginning of a key, up to 255 printable ASCII characters without a space or a '/' but the first"
            ),
        ],
        ...,
    ],
    Strict(False),
]


class Token(_TokensTable):
    """A secret that grants scopes; ``expires`` is in seconds since 1970. Several tokens may share a name, as an old
    and a new one do during a change."""

    name: Annotated[str, AfterValidator(_token_name), Allowed("1 to 64 of letters, digits and _.@:/-")]
    sha256: Annotated[str, BeforeValidator(_digest)]
    scopes: _Scopes = Field(min_length=1)
    expires: Annotated[
        float | None, BeforeValidator(_timestamp), Allowed("a date, or a date and time with its offset from UTC")
    ] = None
    shared_memory_keys: _Keys = ()


class CertificateClient(_TokensTable):
    """The scopes of clients that present a certificate with this name: a subject alternative name, or the common name
    if it has none."""

    name: Annotated[str, AfterValidator(_client_name), Allowed(f"1 to {_CLIENT_NAME_LENGTH} printable characters")]
    scopes: _Scopes = Field(min_length=1)
    shared_memory_keys: _Keys = ()


class Tokens(_TokensTable):
    """The whole file."""

    token: Annotated[tuple[Token, ...], BeforeValidator(_tables)] = Field((), max_length=_MOST)
    client: Annotated[tuple[CertificateClient, ...], BeforeValidator(_tables)] = Field((), max_length=_MOST)

    @validates_all(mode="after")
    def _consistent(self) -> "Tokens":
        if not self.token and not self.client:
            raise ValueError("it lists no token and no client, so no client could call")
        digests = [token.sha256 for token in self.token]
        for token in self.token:
            if digests.count(token.sha256) > 1:
                raise ValueError(f"the sha256 of token '{token.name}' is listed {digests.count(token.sha256)} times")
        names = [client.name for client in self.client]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"client '{name}' is listed {names.count(name)} times")
        self._check_keys()
        return self

    def keys(self) -> dict[str, tuple[str, ...]]:
        """The prefixes of the shared memory keys of each client that may infer, by client name. A token and a
        certificate with the same name are one client."""
        found: dict[str, tuple[str, ...]] = {}
        callers: tuple[Token | CertificateClient, ...] = (*self.token, *self.client)
        for one in callers:
            if "infer" in one.scopes:
                found[one.name] = found.get(one.name, ()) + one.shared_memory_keys
        return {name: keys or default_keys(name) for name, keys in found.items()}

    def _check_keys(self) -> None:
        """Raises ValueError if a key could belong to two clients."""
        widest, whose = None, ""
        # Sorted, a key that starts with another comes right after it.
        for key, name in sorted((key, name) for name, keys in self.keys().items() for key in keys):
            if widest is None or not key.startswith(widest):
                widest, whose = key, name
            elif name != whose:
                raise ValueError(
                    f"shared_memory_keys '{widest}' of '{whose}' and '{key}' of '{name}' overlap; a key belongs to one "
                    "client"
                )


def read(file: Path) -> Tokens:
    """Read ``file``. Raises ConfigurationError."""
    return of(toml_file.read(file, str(file)), str(file))


def of(tables: dict[str, Any], source: str) -> Tokens:
    """Validate what was read from the file named ``source``. Raises ConfigurationError."""
    try:
        return Tokens.model_validate(tables)
    except ValidationError as error:
        problem: ConfigurationError = problem_of(error, Tokens, lambda _: source)
    raise problem
