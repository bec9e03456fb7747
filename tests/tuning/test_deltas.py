"""The differences between two candidates."""

from dataclasses import replace

from inferd.tuning.candidates import Candidate
from inferd.tuning.deltas import delta_between, delta_text

ONE = Candidate(streams=2, threads=4, requests=4, batch=8, pinning=True)


def test_a_move_says_which_way_and_not_how_far() -> None:
    assert delta_between(ONE, replace(ONE, requests=8)) == delta_between(ONE, replace(ONE, requests=16))
    assert delta_between(ONE, replace(ONE, requests=8)) != delta_between(ONE, replace(ONE, requests=2))
    assert delta_between(ONE, ONE) == ()


def test_a_choice_counts_by_its_new_value() -> None:
    assert delta_between(ONE, replace(ONE, pinning=None)) == (("pinning", None),)


def test_moves_are_told_in_words() -> None:
    other = Candidate(streams=4, threads=2, requests=4, batch=1, pinning=None, core_type="any", path="sync")
    assert delta_text(delta_between(ONE, other)) == (
        "more streams, fewer threads, a smaller batch, pinning left to the device, core type any, path sync"
    )
    assert delta_text(delta_between(other, ONE)).endswith("pinning on, core type left to the device, path async")
