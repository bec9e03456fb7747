"""When requests are due, and which process sends them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.bench.load import Arrivals, Closed, Open

arrivals = st.sampled_from(["poisson", "constant"])
seeds = st.integers(0, 2**32 - 1)


@given(kind=arrivals, rate=st.floats(0.5, 2000), seconds=st.floats(0.01, 3), seed=seeds)
def test_times_ascend_and_lie_within_the_window(kind: Arrivals, rate: float, seconds: float, seed: int) -> None:
    due = Open(rate, kind).due(seconds, seed)
    assert due.dtype == np.int64
    assert np.all(np.diff(due) >= 0)
    assert np.all((due >= 0) & (due < seconds * 1e9))


@given(kind=arrivals, rate=st.floats(10, 500), parts=st.integers(1, 7), seed=seeds)
def test_the_arrivals_are_the_same_for_any_number_of_processes(
    kind: Arrivals, rate: float, parts: int, seed: int
) -> None:
    load = Open(rate, kind)
    shares = [load.due(1.0, seed)[part::parts] for part in range(parts)]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), load.due(1.0, seed))


@given(rate=st.floats(0.5, 2000), seconds=st.floats(0.01, 3))
def test_constant_arrivals_are_evenly_apart_and_begin_at_once(rate: float, seconds: float) -> None:
    due = Open(rate, "constant").due(seconds, 0)
    assert due[0] == 0
    assert np.all(np.abs(np.diff(due) - 1e9 / rate) <= 2)
    assert len(due) in {int(rate * seconds), int(rate * seconds) + 1}


@pytest.mark.parametrize("rate", [0.1, 5.0, 2000.0])
def test_random_arrivals_have_their_rate_and_exponential_gaps(rate: float) -> None:
    due = Open(rate, "poisson").due(20_000 / rate, 7)
    # 20 000 are expected, with a standard deviation of 141.
    assert abs(len(due) - 20_000) < 5 * 141
    gaps = np.diff(due) / 1e9 * rate
    # Of exponential gaps the mean is the standard deviation.
    assert abs(gaps.mean() - 1) < 0.05
    assert abs(gaps.std() - 1) < 0.05


def test_a_seed_says_which_random_arrivals() -> None:
    load = Open(100, "poisson")
    assert load.due(1, 1).tolist() == load.due(1, 1).tolist()
    assert load.due(1, 1).tolist() != load.due(1, 2).tolist()


@given(concurrency=st.integers(1, 1000), parts=st.integers(1, 20))
def test_the_clients_of_a_closed_loop_are_shared_out_evenly(concurrency: int, parts: int) -> None:
    seats = [Closed(concurrency).seats(part, parts) for part in range(parts)]
    assert sum(seats) == concurrency
    assert max(seats) - min(seats) <= 1
