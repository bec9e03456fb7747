"""Windows, and which of them count."""

import math

import pytest

from inferd.tuning.candidates import Candidate
from inferd.tuning.measurement import Measurement, MeasurementWindow, percentile, undisturbed

ONE = Candidate(1, 1, 1)


def window(answers: int) -> MeasurementWindow:
    return MeasurementWindow(2.0, (0.1,) * answers)


def test_a_window_counts_answers_and_those_in_time() -> None:
    seen = MeasurementWindow(0.5, (0.1, 0.2, 0.2, 0.3, math.inf))
    assert seen.rate == 10
    assert (seen.within(0.2), seen.within(0.05), seen.within(None)) == (3, 0, 5)


def test_a_window_that_lost_the_machine_does_not_count() -> None:
    assert undisturbed([window(100), window(50)]) == [window(100)]
    assert undisturbed([window(90), window(52), window(100), window(95)]) == [window(90), window(100), window(95)]


def test_windows_that_only_differ_all_count() -> None:
    seen = [window(100), window(80), window(90)]
    assert undisturbed(seen) == seen


def test_windows_without_an_answer_are_as_good_as_each_other() -> None:
    assert undisturbed([window(0), window(0)]) == [window(0), window(0)]


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [percentile(values, p) for p in (1, 50, 99, 99.5, 100)] == [1, 50, 99, 100, 100]
    assert percentile([7.0], 1) == 7
    assert percentile([], 50) == math.inf


@pytest.mark.parametrize(("seconds", "latencies"), [(0.0, ()), (1.0, (0.0, 0.1))])
def test_nothing_takes_no_time(seconds: float, latencies: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="some time"):
        MeasurementWindow(seconds, latencies)


@pytest.mark.parametrize(("windows", "failure"), [((), None), ((window(1),), "no")])
def test_a_measurement_has_either_windows_or_a_failure(
    windows: tuple[MeasurementWindow, ...], failure: str | None
) -> None:
    with pytest.raises(ValueError, match="either"):
        Measurement(ONE, ONE, windows, 1.0, failure)
