"""How soon to look for runs that end without notice."""

from inferd.scheduling.sweeps import LONGEST, Sweeps


def looks(sweeps: Sweeps, now: int, count: int) -> list[int]:
    """The times until the next looks, each look made when it is due."""
    seen = []
    for _ in range(count):
        seen.append(sweeps.ns)
        now += sweeps.ns
        sweeps.looked(now)
    return seen


def test_looks_are_rare_while_runs_succeed() -> None:
    assert looks(Sweeps(), 0, 3) == [LONGEST] * 3


def test_after_a_cancel_looks_come_soon_and_then_ever_later() -> None:
    sweeps = Sweeps()
    sweeps.soon()
    seen = looks(sweeps, 0, 10)
    assert seen[0] <= 250_000
    assert seen[:7] == [seen[0] << n for n in range(7)]
    assert seen[-1] == LONGEST


def test_after_a_failure_looks_come_often_for_a_while() -> None:
    sweeps = Sweeps()
    sweeps.failed(0)
    assert set(looks(sweeps, 0, 100)) == {1_000_000}
    sweeps.looked(2_000_000_000)
    assert looks(sweeps, 2_000_000_000, 10)[-1] == LONGEST
