"""The tokens file: what it may contain, and that no message reveals a secret."""

import tomllib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.config import tokens
from inferd.config.tokens import SCOPES, CertificateClient
from inferd.errors import ConfigurationError

DIGEST = "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08"
SECRET = "inferd_a-secret-that-somebody-put-into-the-wrong-place"
TOKEN = f'[[token]]\nname = "a"\nsha256 = "{DIGEST}"\nscopes = ["infer"]\n'
CLIENT = '[[client]]\nname = "a"\nscopes = ["read", "tuner"]\n'


def read(text: str) -> tokens.Tokens:
    return tokens.of(tomllib.loads(text), "f")


def problem(text: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        read(text)
    return str(raised.value.every[0])


def test_tokens_and_clients_are_read() -> None:
    found = read(TOKEN + "expires = 2027-01-31\n" + CLIENT)
    expires = datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    (one,) = found.token
    assert (one.name, one.sha256, one.scopes, one.expires) == ("a", DIGEST.lower(), ("infer",), expires)
    assert found.client == (CertificateClient(name="a", scopes=("read", "tuner")),)


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:00:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31 12:00:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC)),
        ("0001-01-01", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_expiry_is_a_moment(written: str, moment: datetime) -> None:
    assert read(f"{TOKEN}expires = {written}\n").token[0].expires == moment.timestamp()


def test_without_expiry_a_token_is_valid_for_ever() -> None:
    assert read(TOKEN).token[0].expires is None


def test_an_old_and_a_new_secret_may_share_a_name() -> None:
    assert len(read(TOKEN + TOKEN.replace("9F", "00")).token) == 2


NAME = "allowed: 1 to 64 of letters, digits and _.@:/-"
MOMENT = "allowed: a date, or a date and time with its offset from UTC"
NO_CLIENT = "it lists no token and no client, so no client could call"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", NO_CLIENT),
        ("token = []", NO_CLIENT),
        (TOKEN * 2, "the sha256 of token 'a' is listed 2 times"),
        (TOKEN + TOKEN.lower(), "the sha256 of token 'a' is listed 2 times"),
        (CLIENT * 2, "client 'a' is listed 2 times"),
        (
            TOKEN + "expires = 2027-01-31T12:00:00",
            "token[0].expires: 2027-01-31 12:00:00 has no offset from UTC; write it with one, such as "
            "2027-01-31 12:00:00Z",
        ),
        (TOKEN + 'expires = "soon"', f"token[0].expires: got 'soon'; {MOMENT}"),
        (TOKEN + "expires = 12:00:00", f"token[0].expires: got 12:00:00; {MOMENT}"),
        (TOKEN.replace("infer", "all"), "token[0].scopes[0]: got 'all'; allowed: infer, read, repository, tuner"),
        (
            TOKEN.replace('"infer"', ""),
            "token[0].scopes: got []; allowed: a non-empty list of infer, read, repository and tuner",
        ),
        (
            TOKEN.replace('"infer"', '"infer", "infer"'),
            "token[0].scopes: infer is listed 2 times; list each scope once",
        ),
        (TOKEN.replace('"a"', '"a b"'), f"token[0].name: got 'a b'; {NAME}"),
        (TOKEN.replace('"a"', r'"a\n"'), rf"token[0].name: got 'a\n'; {NAME}"),
        (CLIENT.replace('"a"', r'"a\n"'), r"client[0].name: got 'a\n'; allowed: 1 to 255 printable characters"),
        (TOKEN.replace("name", "nmae"), f"token[0].name: is required but not set; {NAME}"),
    ],
)
def test_an_invalid_tokens_file_is_described(text: str, said: str) -> None:
    assert problem(text) == f"f: {said}"


# -- whose keys of shared memory --------------------------------------------------


def client(name: str, *keys: str, scope: str = "infer") -> str:
    said = f"shared_memory_keys = {list(keys)}\n" if keys else ""
    return f'[[client]]\nname = "{name}"\nscopes = ["{scope}"]\n{said}'


def test_keys_begin_with_the_name_unless_the_file_sets_them() -> None:
    uri = "spiffe://example/batch one"
    found = read(TOKEN + client("b", "/b-", "perf") + client(uri) + client("c", scope="read"))
    assert found.keys() == {"a": ("a+",), "b": ("b-", "perf"), uri: ("spiffe:%2F%2Fexample%2Fbatch%20one+",)}


def test_a_token_and_a_certificate_of_one_name_have_the_same_keys() -> None:
    assert read(TOKEN + client("a", "x-")).keys() == {"a": ("x-",)}
    assert read(client("a", "x-", "x-y")).keys() == {"a": ("x-", "x-y")}


def test_a_single_client_may_have_every_key() -> None:
    assert read(client("a", "") + client("b", scope="read")).keys() == {"a": ("",)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (client("a", "x") + client("b", "x"), "'x' of 'a' and 'x' of 'b'"),
        (client("a", "x-y") + client("b", "x-"), "'x-' of 'b' and 'x-y' of 'a'"),
        (client("a", "x", "x-y") + client("b", "x-yz"), "'x' of 'a' and 'x-yz' of 'b'"),
        (client("a", "") + client("b"), "'' of 'a' and 'b+' of 'b'"),
        (client("a", "b") + client("b"), "'b' of 'a' and 'b+' of 'b'"),
        (client("a", "b+x") + client("b"), "'b+' of 'b' and 'b+x' of 'a'"),
    ],
)
def test_no_key_belongs_to_two_clients(text: str, said: str) -> None:
    assert problem(text) == f"f: shared_memory_keys {said} overlap; a key belongs to one client"


@pytest.mark.parametrize("key", ["a/b", "a b", "é", "x" * 256])
def test_an_invalid_key_prefix_is_refused(key: str) -> None:
    assert problem(client("a", key)).startswith("f: client[0].shared_memory_keys[0]: got '")


@given(st.lists(st.text(min_size=1, max_size=8).filter(str.isprintable), min_size=2, max_size=6, unique=True))
def test_no_two_names_have_a_key_in_common(names: list[str]) -> None:
    own = [key for name in names for key in tokens.default_keys(name)]
    assert not any(one.startswith(other) for one in own for other in own if one is not other)
    assert all("/" not in key and " " not in key and key.isascii() for key in own)


@pytest.mark.parametrize(
    "text",
    [
        TOKEN.replace(DIGEST, SECRET),
        TOKEN.replace(f'"{DIGEST}"', f'["{SECRET}"]'),
        TOKEN + f'secret = "{SECRET}"',
        f'token = "{SECRET}"',
        f'token = ["{SECRET}"]',
        f'token = {{ secret = "{SECRET}" }}',
        f'client = "{SECRET}"',
        TOKEN + f'[other]\nsecret = "{SECRET}"',
    ],
)
def test_no_message_repeats_a_secret_that_is_in_the_wrong_place(text: str) -> None:
    assert SECRET not in problem(text)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\\n", " " + "0" * 63])
def test_a_hash_is_64_hexadecimal_digits(digest: str) -> None:
    assert problem(TOKEN.replace(DIGEST, digest)) == (
        "f: token[0].sha256: is not the 64 hexadecimal digits of a SHA-256; `inferd token new` prints them"
    )


def test_the_number_of_entries_is_limited() -> None:
    many = "".join(CLIENT.replace('"a"', f'"a{n}"') for n in range(1001))
    assert problem(many).startswith("f: client: got ")
    assert len(read(many.removeprefix(CLIENT.replace('"a"', '"a0"'))).client) == 1000


@pytest.mark.parametrize("content", [b"[[token]", b"\xff", None])
def test_a_file_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "tokens.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"^{file}: "):
        tokens.read(file)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats() | st.datetimes() | st.dates() | st.times(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "sha256", "scopes", "expires", "shared_memory_keys", "x"]), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["token", "client", "x"]), VALUES))
def test_every_file_is_accepted_or_a_configuration_error(tables: dict[str, object]) -> None:
    with suppress(ConfigurationError):
        found = tokens.of(tables, "f")
        assert found.token or found.client
        assert all(one.scopes and set(one.scopes) <= set(SCOPES) for one in (*found.token, *found.client))
