"""Each row of tests/marks.py names tests that exist."""

import re

import pytest

from tests.conftest import ROOT
from tests.marks import SERIAL, SLOW

ROWS = {name: [row for tests in rows.values() for row in tests] for name, rows in (("slow", SLOW), ("serial", SERIAL))}


@pytest.mark.parametrize("row", sorted({row for rows in ROWS.values() for row in rows}))
def test_a_row_names_tests_that_there_are(row: str) -> None:
    file, _, test = row.partition("::")
    text = (ROOT / file).read_text()
    assert re.search(rf"^(async )?def {test or 'test_.*'}\(", text, re.MULTILINE)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_no_row_says_again_what_another_says(rows: list[str]) -> None:
    assert len(rows) == len(set(rows))
    assert not [row for row in rows if "::" in row and row.partition("::")[0] in rows]
