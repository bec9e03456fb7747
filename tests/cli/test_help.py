"""``--help`` of every command, and the parser's errors for unknown words."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from inferd.cli.main import COMMANDS, main, parser
from inferd.cli.parser import HelpAll
from inferd.config.allowed import Declaration
from inferd.config.daemon import Group, Settings
from inferd.config.described import described
from inferd.config.variables import flag_of, variable_of

INTERNALS = re.compile(r"factory|default_\w+_dir|Undefined|Annotated|Literal|\b(str|int|float|bool|Path|NoneType)\b")
WITH_SETTINGS = (("serve",), ("check",), ("tune", "run"))


@pytest.fixture(autouse=True)
def terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def commands(program: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for action in program._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from commands(command, (*path, name))


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err.splitlines()[-1]


ALL = tuple(commands(parser()))


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help_is_in_plain_words(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *command, "--help")
    assert text.startswith(" ".join(("usage: inferd", *command)))
    assert not INTERNALS.search(text)
    assert max(map(len, text.splitlines())) <= 80
    # Each option has a meaning, next to it or on the line below.
    for option in re.findall(r"^  (?:-\w, )?--.*\n?.*", text, re.MULTILINE):
        assert re.search(r"  [A-Z]\w*", option), option


def test_every_command_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(capsys, "--help").split())
    for name, command in COMMANDS.items():
        assert f" {name} {command.summary}" in text


def test_ten_settings_are_the_common_ones() -> None:
    assert len([setting for setting in described() if setting.common]) == 10


@pytest.mark.parametrize("command", WITH_SETTINGS, ids=" ".join)
def test_the_common_settings_fit_on_one_screen(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *command, "--help")
    assert len(text.splitlines()) <= 40
    shown = [setting for setting in described() if f"\n  {flag_of(setting.name)} " in text]
    assert all(setting.common for setting in shown)
    assert len(shown) == 10 or command == ("tune", "run")
    assert "--help-all" in text


@pytest.mark.parametrize("command", WITH_SETTINGS, ids=" ".join)
def test_the_full_help_has_each_setting_in_its_group(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, *command, "--help-all")
    assert not INTERNALS.search(text)
    sections = dict(re.findall(r"^(\S.*):\n((?:  .*\n)+)", text, re.MULTILINE))
    assert [title for title in sections if title in {g.value for g in Group}] == [g.value for g in Group]
    found = [setting.name for setting in described()]
    assert sorted(found) == sorted(Settings.model_fields)
    for setting in described():
        words = " ".join(sections[setting.group.value].split())
        assert f"{flag_of(setting.name)} " in words.replace(",", " ")
        assert f"[env: {variable_of(setting.name)}]" in words
        assert " ".join(setting.meaning.split()) in words
        assert (f"(default: {setting.default}) [env:" if setting.default else "(required) [env:") in words


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_type_of_a_setting_is_a_plain_word_or_its_choices(name: str) -> None:
    declared = Declaration.of_field(Settings.model_fields[name])
    if declared.choices:
        assert declared.kind() == "{" + ",".join(declared.choices) + "}"
    else:
        plain = r"DURATION|SIZE|INTEGER(\|auto)?|NUMBER|BOOLEAN|HOST:PORT|DIR|FILE|KEY|URL"
        assert re.fullmatch(plain, declared.kind())


def test_help_loads_no_large_library() -> None:
    program = (
        "import sys\nfrom contextlib import suppress\nfrom inferd.cli.main import main\n"
        f"for command in {ALL}:\n    with suppress(SystemExit):\n        main([*command, '--help'])\n"
        "print([name for name in ('openvino', 'grpc', 'numpy', 'structlog', 'google') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.count("usage: ") == len(ALL)


# -- words that are not known -------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("serv",), "inferd: error: unknown command 'serv' (did you mean serve?); allowed: serve, check, "),
        (("xyz",), "inferd: error: unknown command 'xyz'; allowed: serve, check, "),
        (("tune", "explian"), "inferd tune: error: unknown command 'explian' (did you mean explain?); allowed: run, "),
        (("serve", "--modle", "x"), "inferd serve: error: unknown flag --modle (did you mean --model-repository?)"),
        (("serve", "--tunning=off"), "inferd serve: error: unknown flag --tunning (did you mean --tuning?)"),
        (("bench", "run", "m", "--rat", "3", "--xyz"), "inferd bench run: error: unknown flag --xyz"),
        (("check", "extra"), "inferd check: error: unexpected argument 'extra'"),
        (
            ("bench", "run", "m", "--arrivals", "poison"),
            "inferd bench run: error: argument --arrivals: got 'poison' (did you mean poisson?); "
            "allowed: poisson, constant",
        ),
    ],
)
def test_an_unknown_word_is_named_with_the_likely_one(
    argv: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *argv).startswith(said)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_is_suggested_for_a_letter_too_many(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = flag_of(name)
    assert refused(capsys, "serve", f"{flag}q=1").endswith(f"unknown flag {flag}q (did you mean {flag}?)")


def test_every_duration_on_the_command_line_is_read_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """``1500ms`` is accepted, and other text is refused in the same words."""
    needed = {("token", "new"): ("--name", "a", "--scope", "infer"), ("bench", "run"): ("m",)}
    seen = 0
    for path in ALL:
        command = parser()
        for name in path:
            (subcommands,) = (a for a in command._actions if isinstance(a, argparse._SubParsersAction))
            command = subcommands.choices[name]
        if any(isinstance(action, HelpAll) for action in command._actions):
            continue
        for action in command._actions:
            if action.metavar == "DURATION":
                seen += 1
                flag = action.option_strings[0]
                found = parser().parse_args([*path, *needed.get(path, ()), f"{flag}=1500ms"])
                assert getattr(found, action.dest) == 1.5
                said = refused(capsys, *path, *needed.get(path, ()), f"{flag}=soon")
                assert re.search(r"got 'soon'; allowed: a duration .*, such as 20ms or 1\.5s$", said)
    assert seen == 6
