"""The reference pages that documentation generates from the declarations."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from inferd.config import reference
from inferd.config.daemon import Settings
from inferd.config.model import ModelConfig, Preprocessing, StateTensor

PAGES = reference.pages()


def keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{prefix}{name}.")
        elif (prefix + name) not in ("preprocessing", "sequences.state"):
            yield prefix + name


MODEL_KEYS = [
    *keys(ModelConfig),
    *keys(Preprocessing, "preprocessing.<input>."),
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
