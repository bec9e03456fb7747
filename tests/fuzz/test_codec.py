"""The codec on bytes that no client would send: it raises the documented errors and nothing else."""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import examples
from tests.fuzz import codec_target, corpus_files
from tests.fuzz.mutation import LONGEST, mutated

WHICH = st.integers(0, len(codec_target.SIGNATURES) - 1)
SOME = settings(max_examples=examples(500))


@given(raw=st.binary(max_size=256), which=WHICH)
@SOME
def test_any_bytes_are_a_request_or_a_refusal(raw: bytes, which: int) -> None:
    codec_target.exercise(raw, which)


@given(raw=st.binary(max_size=256), which=st.integers(0, len(codec_target.MESSAGES) - 1))
@SOME
def test_any_bytes_are_any_of_the_messages_or_a_refusal(raw: bytes, which: int) -> None:
    codec_target.parse_any(raw, which)


@pytest.mark.parametrize("which", range(len(codec_target.SIGNATURES)))
def test_all_of_the_kept_corpus_is_a_request_or_a_refusal_to_each_signature(which: int) -> None:
    for data in corpus_files.read():
        codec_target.exercise(data, which)


def test_each_signature_takes_one_of_the_seeds() -> None:
    """So that what is behind the first checks is reached at all."""
    taken = {
        codec_target.exercise(data, w) for w in range(len(codec_target.SIGNATURES)) for data in codec_target.seeds()
    }
    assert {f"taken by {which}" for which in range(len(codec_target.SIGNATURES))} <= taken


def test_twenty_thousand_mutations_are_requests_or_refusals() -> None:
    chance, corpus = Random(20_000), corpus_files.read()
    kinds = set()
    for place in range(20_000):
        kinds.add(codec_target.exercise(mutated(chance, corpus), place))
    assert len(kinds) > 40


def test_mutations_can_be_repeated_and_stay_short() -> None:
    corpus = corpus_files.read()

    def made() -> Iterator[bytes]:
        chance = Random(7)
        return (mutated(chance, corpus) for _ in range(500))

    assert list(made()) == list(made())
    assert max(map(len, made())) <= LONGEST


def test_a_codec_that_said_more_than_one_line_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd.errors.one_line", lambda text, _=0: text)
    with pytest.raises(codec_target.Wrong, match="more than one line"):
        codec_target.exercise(b"\x0a\x04m\nxy\x2a\x03\x0a\x01a", 0)
