"""The settings that an operator may pin."""

from dataclasses import replace

import pytest

from inferd.tuner.operator_commands import _out_of_range
from inferd.tuning.candidates import Candidate, Space

SPACE = Space((1, 2), (1, 2), (1, 2, 4), (1, 4), {"pinning": (True, False), "core_type": ("any", "performance")})
ONE = Candidate(1, 2, 1)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        # Between those that a search would try.
        (replace(ONE, requests=3, batch=3), ""),
        (replace(ONE, pinning=True, core_type="performance"), ""),
        (replace(ONE, requests=5), "requests must be 1..4, not 5"),
        (replace(ONE, batch=5), "batch must be 1..4, not 5"),
        (Candidate(2, 2, 1), "2 streams need at least as many threads and requests"),
        (replace(ONE, hyper_threading=True), "the device has no hyper threading"),
        (replace(ONE, core_type="efficient"), "core_type must be any, performance, not efficient"),
    ],
)
def test_only_what_the_device_has_can_be_asked_for(asked: Candidate, problem: str) -> None:
    assert _out_of_range(SPACE, asked) == problem
