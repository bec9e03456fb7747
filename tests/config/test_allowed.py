"""Descriptions of allowed values, derived from types."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from inferd.config.allowed import Allowed, Declaration, Duration, Size

Even = Annotated[int, Allowed("an even number", "even numbers")]


class Table(BaseModel):
    count: int = Field(0, ge=0, le=9)
    names: dict[str, tuple[Even, ...]] = {}
    inner: "Table | None" = None


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (bool, "true or false"),
        (str, "a string"),
        (float | None, "a number"),
        (Annotated[int, Field(ge=1)], "a whole number of 1 or more"),
        (Annotated[int, Field(ge=1, le=5)], "a whole number of 1..5"),
        (Annotated[float, Field(gt=0)], "a number above 0"),
        (Annotated[float, Field(ge=50, lt=100)], "a number of 50 or more and below 100"),
        (Annotated[Duration, Field(gt=0, le=90)] | None, "a duration above 0 and up to 90s, such as 20ms or 1.5s"),
        (Annotated[Size, Field(ge=1024)], "a size of 1KiB or more, such as 64MiB"),
        (tuple[Duration, ...], "a list of durations"),
        (Annotated[float, Field(gt=0, le=1)] | None, "a number above 0 and up to 1"),
        (Literal["a"], "'a'"),
        (Literal["a", "b", "c"], "'a', 'b' or 'c'"),
        (Even, "an even number"),
        (tuple[str, ...], "a list of strings"),
        (Annotated[tuple[Even, ...], Field(min_length=1)], "a non-empty list of even numbers"),
        (tuple[tuple[float, ...], ...], "a list of lists of numbers"),
        (dict[str, Even], "a table of even numbers"),
        (dict[str, tuple[Annotated[int, Field(ge=0)], ...]], "a table of lists of whole numbers of 0 or more"),
        (Table, "a table"),
        (dict[str, Table], "a table of tables"),
    ],
)
def test_a_type_is_described_in_words(annotation, words):
    assert Declaration.of(annotation).one() == words


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ([], "a table"),
        (["count"], "a whole number of 0..9"),
        (["names"], "a table of lists of even numbers"),
        (["names", "anything"], "a list of even numbers"),
        (["names", "anything", 3], "an even number"),
        (["inner", "inner", "count"], "a whole number of 0..9"),
    ],
)
def test_a_path_leads_to_its_declaration(path, words):
    assert Declaration(Table).at(path).one() == words
