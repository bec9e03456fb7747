"""The status line, and reading it again."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.lifecycle import ModelState
from inferd.systemd.status_line import StatusLine


def test_a_line_says_how_many_of_the_models_serve() -> None:
    states = [ModelState.READY, ModelState.READY, ModelState.UNAVAILABLE, ModelState.LOADING]
    assert str(StatusLine.of(states)) == "serving 2 of 4 models, loading 1"
    assert str(StatusLine.of([ModelState.READY])) == "serving 1 of 1 model"


@given(st.lists(st.sampled_from(ModelState)))
def test_every_line_is_read_as_what_it_was_made_of(states: list[ModelState]) -> None:
    served = StatusLine.of(states)
    assert StatusLine.read(str(served)) == served


@given(st.text())
def test_any_other_line_is_read_as_nothing_known(line: str) -> None:
    read = StatusLine.read(line)
    assert read is None or str(read).split()[0] == "serving"
