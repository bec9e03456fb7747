"""Suggestions for misspelt words."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import UnknownModel, did_you_mean

NAMES = ("grpc_bind", "metrics_bind", "model_repository", "max_message_bytes", "tuning")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("grcp_bind", "grpc_bind"),
        ("grpc-bind", "grpc_bind"),
        ("GRPC_BIND", "grpc_bind"),
        ("modle", "model_repository"),
        ("tunning", "tuning"),
    ],
)
def test_the_closest_name_is_offered(word: str, name: str) -> None:
    assert did_you_mean(word, NAMES) == f" (did you mean {name}?)"


@pytest.mark.parametrize("word", ["", "x", "nonsense", "zzzzzzzz"])
def test_nothing_is_offered_for_a_word_like_none_of_them(word: str) -> None:
    assert did_you_mean(word, NAMES) == ""


@given(st.text(), st.lists(st.text()))
def test_any_words_give_one_line(word: str, names: list[str]) -> None:
    assert did_you_mean(word, names).isprintable()


def test_an_unknown_model_is_compared_with_the_known_ones() -> None:
    assert str(UnknownModel("ech", ["echo", "resnet"])) == "unknown model 'ech' (did you mean echo?)"
    assert str(UnknownModel("ech")) == "unknown model 'ech'"
    assert str(UnknownModel("", ["echo"])) == "unknown model ''"


def test_among_many_models_the_one_meant_is_found() -> None:
    known = [f"{owner}-resnet-{i:04d}" for owner in ("alpha", "beta") for i in range(512)]
    for typed in ("alpha-resnet-03177", "alpha-resnt-0317", "lpha-resnet-0317"):
        assert "did you mean alpha-resnet-03" in str(UnknownModel(typed, known))


def test_clients_can_not_make_it_slow() -> None:
    # Names that are alike in all but the end take difflib longest: 3 s for one word against a thousand.
    known = [f"team-resnet-{i:08d}" * 6 for i in range(1024)]
    before = time.process_time()
    for i in range(20):
        UnknownModel(f"team-resnet-0000xx{i:02d}" * 6, known)
        UnknownModel(f"team-resnet-0000xx{i:02d}", [name[:40] for name in known])
    assert time.process_time() - before < 2
