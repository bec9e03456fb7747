"""Who a caller is, and what that opens; without any port."""

import hmac
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.config import tokens
from inferd.config.tokens import SCOPES
from inferd.errors import NotAuthenticated, OutOfScope
from inferd.security import authorisation
from inferd.security.authorisation import SECRET_LENGTH, Authority, Identity

CHARACTERS = "abcXYZ019._~+/=-"
SECRETS = st.text(CHARACTERS, min_size=SECRET_LENGTH[0], max_size=80)


def authority(*secrets: str, expires: float | None = None, clients: dict[str, list[str]] | None = None) -> Authority:
    """An authority with ``secrets`` as the tokens "0", "1" and so on, all with the scope infer."""
    entries = [
        {"name": str(n), "sha256": sha256(s.encode()).hexdigest(), "scopes": ["infer"]} for n, s in enumerate(secrets)
    ]
    named = [{"name": name, "scopes": scopes} for name, scopes in (clients or {}).items()]
    known = tokens.of({"token": entries, "client": named}, "f")
    if expires is not None:
        known = known.model_copy(
            update={"token": tuple(one.model_copy(update={"expires": expires}) for one in known.token)}
        )
    return Authority(known)


def reason(known: Authority, authorization: str | None, names: tuple[str, ...] = (), now: float = 0) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        known.identify(authorization, names, now)
    return refused.value.reason


@given(st.lists(SECRETS, min_size=1, max_size=5, unique=True), st.data())
def test_a_secret_identifies_exactly_its_token(secrets: list[str], data: st.DataObject) -> None:
    known = authority(*secrets)
    for n, secret in enumerate(secrets):
        assert known.identify(f"Bearer {secret}", (), 0) == Identity(str(n), frozenset(["infer"]))
    other = data.draw(SECRETS.filter(lambda s: s not in secrets))
    assert reason(known, f"Bearer {other}") == "unknown"


@given(SECRETS, st.integers(0, 100), st.sampled_from(CHARACTERS))
def test_a_secret_that_is_a_little_wrong_is_wrong(secret: str, place: int, character: str) -> None:
    at = place % len(secret)
    changed = secret[:at] + character + secret[at + 1 :]
    if changed != secret:
        assert reason(authority(secret), f"Bearer {changed}") == "unknown"


@given(st.text(max_size=200) | st.from_regex(r"Bearer .{0,80}"))
def test_only_a_known_secret_identifies_a_caller(text: str) -> None:
    assert reason(authority("x" * 40), text) in ("malformed", "unknown")


@pytest.mark.parametrize("length", [0, 1, SECRET_LENGTH[0] - 1, SECRET_LENGTH[1] + 1])
def test_a_secret_of_another_length_is_refused_though_its_hash_is_known(length: int) -> None:
    secret = "x" * length
    assert reason(authority(secret), f"Bearer {secret}") == "malformed"
    with pytest.raises(NotAuthenticated):
        authority(secret).holder(secret, 0)


@pytest.mark.parametrize("length", SECRET_LENGTH)
def test_secrets_of_the_least_and_the_greatest_length_are_accepted(length: int) -> None:
    secret = "x" * length
    assert authority(secret).identify(f"Bearer {secret}", (), 0).name == "0"


def test_a_client_has_the_keys_of_its_name_unless_the_file_sets_them() -> None:
    tables = [
        {"name": "a", "scopes": ["infer"], "shared_memory_keys": ["x-", "y"]},
        {"name": "b", "scopes": ["infer"]},
        {"name": "c", "scopes": ["read"], "shared_memory_keys": ["z"]},
    ]
    known = Authority(tokens.of({"client": tables}, "f"))
    assert [known.keys_of(name) for name in "abc"] == [("x-", "y"), ("b+",), ("c+",)]
    # A caller known only by a certificate.
    assert Authority(None).keys_of("spiffe://example/a") == ("spiffe:%2F%2Fexample%2Fa+",)


def test_every_hash_is_compared_even_after_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [f"{n:x>40}" for n in range(7)]
    known = authority(*secrets)
    compared: list[bytes] = []

    class Watched:
        @staticmethod
        def compare_digest(a: bytes, b: bytes) -> bool:
            compared.append(a)
            return hmac.compare_digest(a, b)

    monkeypatch.setattr(authorisation, "hmac", Watched)
    for secret in (secrets[0], secrets[3], secrets[6], "y" * 40):
        compared.clear()
        try:
            known.identify(f"Bearer {secret}", (), 0)
        except NotAuthenticated:
            assert secret == "y" * 40
        assert compared == [sha256(s.encode()).digest() for s in secrets]


@pytest.mark.parametrize(("now", "holds"), [(99.9, True), (100.0, False), (100.1, False)])
def test_a_token_is_valid_until_the_moment_it_expires(now: float, holds: bool) -> None:
    known, shown = authority("x" * 40, expires=100.0), "Bearer " + "x" * 40
    if holds:
        assert known.identify(shown, (), now).name == "0"
    else:
        assert reason(known, shown, now=now) == "expired"


def test_the_first_known_name_identifies_the_caller() -> None:
    known = authority(clients={"b": ["read"], "c": ["infer"]})
    assert known.identify(None, ("a", "b", "c"), 0) == Identity("b", frozenset(["read"]))
    assert known.identify(None, ("a", "x"), 0) == Identity("a", frozenset())
    assert reason(known, None) == "missing"


def test_a_token_takes_precedence_over_a_certificate_valid_or_not() -> None:
    known = authority("x" * 40, clients={"c": ["read"]})
    assert known.identify("Bearer " + "x" * 40, ("c",), 0).name == "0"
    assert reason(known, "Bearer " + "y" * 40, ("c",)) == "unknown"


def test_without_a_tokens_file_any_verified_name_is_enough_and_no_token_is_valid() -> None:
    known = Authority(None)
    assert known.identify(None, ("a",), 0) == Identity("a", frozenset(SCOPES))
    assert reason(known, None) == "missing"
    assert reason(known, "Bearer " + "x" * 40) == "unknown"


def test_a_caller_has_a_scope_or_not() -> None:
    identity = Identity("a\n", frozenset(["infer"]))
    identity.check("infer", "That")
    with pytest.raises(OutOfScope) as refused:
        identity.check("read", "That")
    assert str(refused.value) == "That needs the scope 'read', which 'a ' does not have"
