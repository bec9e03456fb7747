"""The reference pages that are generated from the declarations."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from inferd.config import reference
from inferd.config.daemon import Settings, load
from inferd.config.model import ModelConfig, PreprocessingSettings, StateTensor

PAGES = reference.pages()


def keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{prefix}{name}.")
        elif (prefix + name) not in ("preprocessing", "sequences.state"):
            yield prefix + name


MODEL_KEYS = [
    *keys(ModelConfig),
    *keys(PreprocessingSettings, "preprocessing.<input>."),
    *keys(StateTensor, "sequences.state.<input>."),
]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_has_a_row_with_flag_variable_and_key(name):
    row = f"| `--{name.replace('_', '-')}` | `INFERD_{name.upper()}` | `{name}` | "
    assert PAGES["configuration.md"].count(row) == 1


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_each_key_of_a_model_has_a_row(key):
    assert PAGES["model-configuration.md"].count(f"\n| `{key}` | ") == 1


@pytest.mark.parametrize("page", PAGES)
def test_each_row_is_complete(page):
    header, *rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in PAGES[page].splitlines() if line.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        assert len(row) == len(header)
        assert row[-1].strip()
        if not row[0].startswith(" **"):
            assert all(cell.strip() for cell in row)


@pytest.mark.parametrize("page", PAGES)
def test_placeholders_do_not_vanish_as_html(page):
    assert not re.search(r"<\w", re.sub(r"`[^`]*`", "", PAGES[page]))


def test_the_default_of_the_cache_folder_says_how_it_is_found():
    row = next(line for line in PAGES["configuration.md"].splitlines() if "`cache_dir`" in line)
    assert "| `$CACHE_DIRECTORY` (systemd sets it), else `$XDG_CACHE_HOME/inferd`, else `~/.cache/inferd` |" in row


@pytest.mark.parametrize("page", PAGES)
def test_pages_do_not_depend_on_the_machine(page):
    assert str(Path.home()) not in PAGES[page]


def test_the_example_environment_has_every_setting_with_its_default():
    lines = [line for line in reference.environment_file().splitlines() if line.lstrip("#").startswith("INFERD_")]
    assert [line.lstrip("#").split("=")[0] for line in lines] == [f"INFERD_{n.upper()}" for n in Settings.model_fields]
    assert "#INFERD_GRPC_BIND=127.0.0.1:8001" in lines
    assert "#INFERD_REPOSITORY_CONTROL=false" in lines


def test_only_what_has_no_default_is_set_in_the_example_environment(monkeypatch):
    given = [line.split("=", 1) for line in reference.environment_file().splitlines() if line.startswith("INFERD_")]
    assert [name for name, _ in given] == ["INFERD_MODEL_REPOSITORY"]
    for name, value in given:
        monkeypatch.setenv(name, value)
    assert load().model_repository == Path("/srv/inferd/models")
