"""What counts as a lasting change."""

import pytest

from inferd.tuning.drift import Drift, LoadClass, LoadSample, load_class


def looks(*sights: LoadSample) -> list[str]:
    drift = Drift()
    return [drift.observe(sample) for sample in sights]


def test_a_service_time_that_stays_is_no_drift() -> None:
    assert not any(looks(*[LoadSample(100 + turn % 7, 0.5) for turn in range(50)]))


@pytest.mark.parametrize(("after", "said"), [(200.0, "2.00"), (50.0, "0.50")])
def test_a_service_time_that_changed_for_good_is_told(after: float, said: str) -> None:
    told = looks(LoadSample(100, 0.5), *[LoadSample(after, 0.5)] * 6)
    assert told[:-1] == [""] * 6
    assert said in told[-1]


def test_a_spell_of_slow_runs_is_not_for_good() -> None:
    spell = [*[LoadSample(300, 0.5)] * 5, LoadSample(100, 0.5)]
    assert not any(looks(LoadSample(100, 0.5), *spell * 4))


def test_another_load_is_told_once_it_lasts() -> None:
    told = looks(LoadSample(100, 0.1), *[LoadSample(100, 0.9)] * 6)
    assert told[:-1] == [""] * 6
    assert told[-1] == "the load is heavy, and was light after the last tuning"


def test_a_load_that_comes_and_goes_is_not_for_good() -> None:
    assert not any(looks(*[LoadSample(100, 0.1), LoadSample(100, 0.9)] * 20))


def test_a_model_without_traffic_shows_nothing() -> None:
    assert not any(looks(*[LoadSample(0, 0.0)] * 20))


def test_the_classes_are_by_the_part_in_use() -> None:
    assert [load_class(busy) for busy in (0, 0.24, 0.25, 0.74, 0.75, 1)] == [
        LoadClass.LIGHT,
        LoadClass.LIGHT,
        LoadClass.MEDIUM,
        LoadClass.MEDIUM,
        LoadClass.HEAVY,
        LoadClass.HEAVY,
    ]
