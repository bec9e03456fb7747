"""Series of unloaded versions stay for a while after the first scrape with their last count."""

from inferd.metrics.grace import Grace


def test_each_is_shown_for_so_long_from_the_first_look_at_its_last_count() -> None:
    grace = Grace[str](10)
    assert grace.shows({"a": 1}, 0) == {"a"}
    assert grace.shows({"a": 1, "b": 1}, 9) == {"a", "b"}
    assert grace.shows({"a": 1, "b": 1}, 10) == {"b"}
    # One that counts on begins again, and so does one that was away.
    assert grace.shows({"a": 2, "b": 1}, 19) == {"a"}
    assert grace.shows({"b": 1}, 20) == frozenset()
    assert grace.shows({"a": 2}, 30) == {"a"}


def test_no_time_shows_nothing() -> None:
    assert Grace[str](0).shows({"a": 1}, 0) == frozenset()
