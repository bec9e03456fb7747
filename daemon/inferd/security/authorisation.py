"""Identifies a caller by the credentials presented, and decides whether its scopes suffice.

The secret presented is hashed and compared with every known hash, in the same time whether and where
one matches. A plain SHA-256 is enough: secrets are long and random, so there is nothing to guess, and
a slow hash would only be one more way to keep the daemon busy.
"""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from inferd.config.tokens import SCOPES, Scope, Tokens, default_keys
from inferd.errors import NotAuthenticated, OutOfScope

# A shorter secret is refused whatever its hash: 32 random characters of 64 kinds are 192 bits.
SECRET_LENGTH = (32, 512)
_BEARER = re.compile(rf"bearer +([A-Za-z0-9._~+/=-]{{{SECRET_LENGTH[0]},{SECRET_LENGTH[1]}}})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, by the name of the token or in the certificate, and what the caller may do."""

    name: str
    scopes: frozenset[Scope]

    def check(self, scope: str, what: str) -> None:
        """Raises OutOfScope unless the caller has ``scope``, which ``what`` needs."""
        if scope not in self.scopes:
            raise OutOfScope(what, scope, self.name)


@dataclass(frozen=True, slots=True)
class _TokenEntry:
    digest: bytes
    identity: Identity
    expires: float | None


class Authority:
    """Knows the callers that ``tokens`` lists; without tokens, every verified certificate grants everything."""

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tuple(
            _TokenEntry(bytes.fromhex(t.sha256), Identity(t.name, frozenset(t.scopes)), t.expires)
            for t in (tokens.token if tokens is not None else ())
        )
        self._clients = {c.name: frozenset(c.scopes) for c in (tokens.client if tokens is not None else ())}
        self._keys = tokens.keys() if tokens is not None else {}
        self._otherwise: frozenset[Scope] = frozenset() if tokens is not None else frozenset(SCOPES)

    def identify(self, authorization: str | None, names: Sequence[str], now: float) -> Identity:
        """The caller that presents ``authorization``, the value of that metadata key, or else ``names`` of a
        certificate.

        ``now`` is in seconds since 1970. A valid certificate does not make up for an invalid token. Raises
        NotAuthenticated.
        """
        if authorization is not None:
            if (found := _BEARER.fullmatch(authorization)) is None:
                raise NotAuthenticated("malformed")
            return self.holder(found[1], now)
        if not names:
            raise NotAuthenticated("missing")
        name = next((n for n in names if n in self._clients), names[0])
        return Identity(name, self._clients.get(name, self._otherwise))

    def keys_of(self, name: str) -> tuple[str, ...]:
        """The prefixes of the shared memory keys that ``name`` may register; no two names share a key."""
        return self._keys.get(name) or default_keys(name)

    def holder(self, secret: str, now: float) -> Identity:
        """The owner of that secret. Raises NotAuthenticated."""
        digest = sha256(secret.encode()).digest()
        # No early return: the time taken must not tell which hash came close.
        fitting = [entry for entry in self._tokens if hmac.compare_digest(entry.digest, digest)]
        if not fitting or not SECRET_LENGTH[0] <= len(secret) <= SECRET_LENGTH[1]:
            raise NotAuthenticated("unknown")
        if fitting[0].expires is not None and fitting[0].expires <= now:
            raise NotAuthenticated("expired", fitting[0].identity.name)
        return fitting[0].identity
