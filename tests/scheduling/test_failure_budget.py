"""How much one client's failures may cost other clients."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.failure_budget import FailureBudget

SECOND = 1_000_000_000


@given(st.lists(st.tuples(st.integers(1, SECOND // 10), st.integers(0, SECOND // 10)), min_size=1))
def test_a_client_that_keeps_failing_gets_a_quarter_of_the_time(failures: list[tuple[int, int]]) -> None:
    budget, now, spent = FailureBudget(), 0, 0
    for took, rest in failures:
        now += budget.wait("a", now) + rest
        now += took
        spent += took
        budget.charge("a", took, now)
    # The last failure is not yet paid for.
    assert (spent - failures[-1][0]) * 4 <= now + SECOND


def test_the_first_failures_cost_nothing() -> None:
    budget = FailureBudget()
    for n in range(20):
        budget.charge("a", SECOND // 100, n)
        assert budget.wait("a", n) == 0


def test_each_client_pays_for_itself_and_clients_without_a_name_pay_nothing() -> None:
    budget = FailureBudget()
    for client in ("a", ""):
        budget.charge(client, SECOND, 0)
    assert [budget.wait(client, 0) > 0 for client in ("a", "b", "")] == [True, False, False]
    assert budget.wait("a", 4 * SECOND) == 0
    assert not budget


def test_clients_longest_without_a_failure_are_forgotten() -> None:
    budget = FailureBudget()
    for n in range(2000):
        budget.charge(str(n), SECOND, n)
    assert budget.wait("0", 2000) == 0
    assert budget.wait("1999", 2000) > 0
