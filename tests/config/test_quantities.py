"""Durations and sizes are read as people write them, in every setting."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from inferd.cli import settings_flags
from inferd.config import daemon, quantities, reference
from inferd.config.allowed import Declaration
from inferd.config.daemon import Settings
from inferd.config.model import ModelConfig, StateTensor, parse
from inferd.config.variables import flag_of, variable_of
from inferd.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("90d", 7_776_000.0),
        ("8w", 4_838_400.0),
        ("250us", 0.00025),
        (".5s", 0.5),
        ("7.s", 7.0),
        (" 3 s ", 3.0),
    ],
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert quantities.seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "20", "-1s", "1,5s", "1e3s", "20 MS", "20mS", "1h30m", "٣s", "nans", "1s\n1s"]
)
def test_any_other_text_is_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        quantities.seconds_of(text)


@given(st.floats(0, 1e9, allow_nan=False).map(lambda x: round(x, 6)))
def test_a_printed_duration_reads_back_as_the_same_number(seconds: float) -> None:
    text = quantities.duration(seconds)
    assert (quantities.seconds_of(text) if text != "0" else 0.0) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (0.02, "20ms"),
        (0.0005, "500us"),
        (1.5, "1.5s"),
        (90, "90s"),
        (120, "2m"),
        (3600, "1h"),
        (86400, "24h"),
    ],
)
def test_a_duration_is_printed_with_the_largest_unit_that_is_short(seconds: float, text: str) -> None:
    assert quantities.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "count"), [("1B", 1), ("512KiB", 524_288), ("64MiB", 64 << 20), ("1.5GiB", 3 << 29), ("2TiB", 2 << 40)]
)
def test_a_size_has_a_unit(text: str, count: int) -> None:
    assert quantities.bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "64", "64M", "64MB", "64mib", "-1B", "0.5B", "MiB"])
def test_any_other_text_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"unit|bytes"):
        quantities.bytes_of(text)


@given(st.integers(1, 2**63))
def test_a_printed_size_reads_back_as_the_same_number(count: int) -> None:
    assert quantities.bytes_of(quantities.size(count)) == count


# -- every setting that is one ----------------------------------------------------

# Each is within the bounds of every setting of its kind, written in two ways.
SAME: dict[str, tuple[str, str, float]] = {"duration": ("1500ms", "1.5", 1.5), "size": ("1MiB", "1048576", 1 << 20)}


def daemon_quantities() -> Iterator[tuple[str, str]]:
    for name, field in Settings.model_fields.items():
        if quantity := Declaration.of_field(field).quantity:
            yield name, quantity.noun


def model_quantities(table: type[BaseModel] = ModelConfig, before: str = "") -> Iterator[tuple[str, str]]:
    for name, field in table.model_fields.items():
        declared = Declaration.of_field(field)
        if declared.quantity:
            yield before + name, declared.quantity.noun
        elif declared.table:
            yield from model_quantities(declared.table, f"{before}{name}.")


DAEMON = dict(daemon_quantities())
MODEL = dict(model_quantities())


def test_all_seconds_and_bytes_are_durations_and_sizes() -> None:
    assert {n for n in Settings.model_fields if n.endswith("_bytes")} == {n for n, q in DAEMON.items() if q == "size"}
    floats = {n for n, f in Settings.model_fields.items() if Declaration.of_field(f).annotation is float}
    assert floats - set(DAEMON) == {"trace_ratio"}
    plain = {
        f"{name}.{key}"
        for name, field in ModelConfig.model_fields.items()
        if (table := Declaration.of_field(field).table)
        for key, one in table.model_fields.items()
        if (declared := Declaration.of_field(one)).annotation is float and not declared.quantity
    }
    assert plain == {
        "objective.percentile",
        "objective.availability",
        "share.weight",
        "rollout.tolerance",
        "rollout.canary_share",
    }
    assert not [key for key in (*Settings.model_fields, *MODEL, *StateTensor.model_fields) if key.endswith("_ms")]


@pytest.mark.parametrize("name", DAEMON)
def test_a_setting_of_the_daemon_takes_a_unit_from_each_source(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def got(*flags: str, file: Path | None = None) -> Any:
        parser = argparse.ArgumentParser()
        settings_flags.add_arguments(parser)
        given = parser.parse_args(["--model-repository", "models", *flags])
        return getattr(daemon.load(file, vars(given)), name)

    united, bare, number = SAME[DAEMON[name]]
    file = tmp_path / "inferd.toml"
    for text in (united, bare):
        assert got(f"{flag_of(name)}={text}") == number
        with monkeypatch.context() as environment:
            environment.setenv(variable_of(name), text)
            assert got() == number
    for value in (f'"{united}"', bare):
        file.write_text(f"{name} = {value}")
        assert got(file=file) == number
    with pytest.raises(ConfigurationError, match=rf"got '3 parsecs'; allowed: a {DAEMON[name]} "):
        got(f"{flag_of(name)}=3 parsecs")


@pytest.mark.parametrize("key", MODEL)
def test_a_setting_of_a_model_takes_a_unit_or_a_bare_number(key: str) -> None:
    united, bare, number = SAME[MODEL[key]]
    table, _, name = key.rpartition(".")
    for value in (f'"{united}"', bare):
        config = parse(f"[{table}]\n{name} = {value}", "m/model.toml")
        assert getattr(getattr(config, table), name) == number
    # TOML has types: a number in quotes and without a unit is a mistake.
    for wrong in (f'"{bare}"', '"3 parsecs"', "true"):
        with pytest.raises(ConfigurationError) as raised:
            parse(f"[{table}]\n{name} = {wrong}", "m/model.toml")
        assert raised.value.allowed.startswith(f"a {MODEL[key]} ")


@pytest.mark.parametrize("page", reference.pages().items(), ids=lambda page: str(page[0]))
def test_defaults_are_documented_with_their_unit(page: tuple[str, str]) -> None:
    tables = {"configuration.md": (Settings, DAEMON), "model-configuration.md": (ModelConfig, MODEL)}
    schema, keys = tables[page[0]]
    lines = page[1].splitlines()
    for key in keys:
        default: Any = schema.model_validate({"model_repository": "m"} if schema is Settings else {})
        for step in key.split("."):
            default = getattr(default, step)
        if default is None:
            continue
        written = (quantities.duration if keys[key] == "duration" else quantities.size)(default)
        (row,) = [line for line in lines if f"| `{key}` |" in line]
        assert f"| `{written}` |" in row or f'| `"{written}"` |' in row
