"""``inferd token new``: the secret matches the lines printed for the tokens file, and is shown once."""

import tomllib
from datetime import UTC, datetime, timedelta

import pytest

from inferd.cli.main import main
from inferd.config import tokens
from inferd.errors import NotAuthenticated
from inferd.security.authorisation import Authority


def made(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, str]:
    """The lines for the file, and the secret."""
    assert main(["token", "new", *flags]) == 0
    printed = capsys.readouterr()
    introduction, _, secret = printed.err.strip().rpartition(" ")
    assert introduction == "the secret, shown only once:"
    return printed.out, secret


def test_the_lines_make_the_secret_known(capsys: pytest.CaptureFixture[str]) -> None:
    lines, secret = made(capsys, "--name", "frontend", "--scope", "infer", "--scope", "read", "--scope", "infer")
    assert secret not in lines
    known = Authority(tokens.of(tomllib.loads(lines), "f"))
    identity = known.identify(f"Bearer {secret}", (), 0)
    assert (identity.name, identity.scopes) == ("frontend", {"infer", "read"})


def test_no_two_secrets_are_the_same_and_all_are_long(capsys: pytest.CaptureFixture[str]) -> None:
    secrets = {made(capsys, "--name", "a", "--scope", "infer")[1] for _ in range(20)}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {len("inferd_") + 43}
    assert all(secret.startswith("inferd_") for secret in secrets)


@pytest.mark.parametrize(
    ("span", "length"), [("12h", timedelta(hours=12)), ("90d", timedelta(days=90)), ("8w", timedelta(weeks=8))]
)
def test_it_expires_after_the_span(capsys: pytest.CaptureFixture[str], span: str, length: timedelta) -> None:
    before = datetime.now(UTC)
    lines, secret = made(capsys, "--name", "a", "--scope", "infer", "--expires", span)
    after = datetime.now(UTC)
    known = Authority(tokens.of(tomllib.loads(lines), "f"))
    # The file has whole seconds.
    assert known.identify(f"Bearer {secret}", (), (before + length).timestamp() - 1).name == "a"
    with pytest.raises(NotAuthenticated):
        known.identify(f"Bearer {secret}", (), (after + length).timestamp())


@pytest.mark.parametrize(
    "flags",
    [
        ("--name", "a"),
        ("--scope", "infer"),
        ("--name", "a", "--scope", "all"),
        ("--name", 'a"\n', "--scope", "infer"),
        ("--name", "", "--scope", "infer"),
        *(("--name", "a", "--scope", "infer", "--expires", span) for span in ("90", "0d", "-1d", "1y", "d", "123456d")),
    ],
)
def test_anything_else_is_wrong_usage(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["token", "new", *flags])
    assert ended.value.code == 2
    assert "secret, which" not in capsys.readouterr().err
