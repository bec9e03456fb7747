"""The figures that two samples of a server give for the time between them."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.bench.server_side import STAGES, Counted, Resources, Sample, during

SECOND = 1_000_000_000


def sample(requests: int, seconds_each: float = 0.0, cpu: float | None = None, rss: int = 0, runs: int = 0) -> Sample:
    total = (requests, round(requests * seconds_each * SECOND))
    resources = None if cpu is None else Resources(cpu, rss)
    return Sample(Counted(total, dict.fromkeys(STAGES, total), requests, runs), resources)


NOTHING = Sample(None, None)


@given(before=st.integers(0, 1000), count=st.integers(1, 1000), mean=st.integers(1, 10**9))
def test_stages_are_means_over_the_requests_of_the_window_alone(before: int, count: int, mean: int) -> None:
    was = Counted((before, 7), dict.fromkeys(STAGES, (before, 7)), 0, 0)
    now_total = (before + count, 7 + count * mean)
    now = Counted(now_total, dict.fromkeys(STAGES, now_total), 0, 0)
    side = during(Sample(was, None), Sample(now, None), 1.0, 0, None)
    assert side.requests == count
    assert side.stages == dict.fromkeys(STAGES, mean / 1e9)
    assert side.request == mean / 1e9


def test_a_silent_server_gives_no_figures() -> None:
    side = during(NOTHING, NOTHING, 1.0, 100, None)
    assert (side.requests, side.stages, side.request, side.rows) == (None, None, None, None)
    assert (side.cpu, side.cores, side.rss_bytes, side.rss_growth) == (None, None, None, None)


def test_a_window_without_requests_has_no_stages() -> None:
    side = during(sample(5, 0.1, 1.0), sample(5, 0.1, 1.5), 2.0, 0, None)
    assert (side.requests, side.stages, side.request) == (0, None, None)
    assert (side.cpu, side.cores) == (None, 0.25)


def test_cpu_is_divided_by_what_the_server_counted() -> None:
    side = during(sample(100, cpu=10.0), sample(300, cpu=12.0), 4.0, 150, None)
    assert (side.cpu, side.cores) == (0.01, 0.5)


def test_cpu_is_divided_by_the_answers_where_the_server_counts_nothing() -> None:
    before, after = (Sample(None, Resources(cpu, 0)) for cpu in (10.0, 12.0))
    assert during(before, after, 4.0, 400, None).cpu == 0.005


def test_memory_is_what_there_is_at_the_end_and_what_came_since_before_the_load() -> None:
    side = during(sample(0, cpu=0.0, rss=5000), sample(1, cpu=0.0, rss=7000), 1.0, 1, Resources(0.0, 4000))
    assert (side.rss_bytes, side.rss_growth) == (7000, 3000)


def test_rows_a_run_tell_how_many_requests_a_batch_had() -> None:
    assert during(sample(100, runs=50), sample(900, runs=250), 1.0, 1, None).rows == 4.0
