"""Each row of tests/marks.py names tests that exist."""

import re

import pytest

from tests.conftest import NODE_IDS, ROOT, is_left_out, rows_of
from tests.marks import SAMPLED, SERIAL, SLOW

ROWS = {name: [row for tests in rows.values() for row in tests] for name, rows in (("slow", SLOW), ("serial", SERIAL))}


@pytest.mark.parametrize("row", sorted({row for rows in ROWS.values() for row in rows} | SAMPLED.keys()))
def test_a_row_names_tests_that_there_are(row: str) -> None:
    file, _, test = row.partition("::")
    text = (ROOT / file).read_text()
    assert re.search(rf"^(async )?def {test or 'test_.*'}\(", text, re.MULTILINE)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_no_row_says_again_what_another_says(rows: list[str]) -> None:
    assert len(rows) == len(set(rows))
    assert not [row for row in rows if "::" in row and row.partition("::")[0] in rows]


@pytest.mark.parametrize("row", SAMPLED)
def test_of_what_is_sampled_some_cases_are_quick_and_some_are_not(row: str, request: pytest.FixtureRequest) -> None:
    cases = [test for test in request.config.stash[NODE_IDS] if row in rows_of(test)[0] and "[" in test]
    if not cases:
        pytest.skip("was not collected")
    assert {is_left_out(case) for case in cases} == {True, False}
