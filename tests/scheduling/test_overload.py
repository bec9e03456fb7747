"""Overload in simulated time: how many responses are in time, and whose."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferd.scheduling.objective import Objective
from inferd.scheduling.rules import PoolSpec, QueueLimits, SchedulerRules
from inferd.scheduling.scheduler import Scheduler
from tests.effort import examples
from tests.scheduling.simulation import MS, Clients, Outcomes, Simulation

SECOND = 1_000_000_000
SLOTS = 2


def simulation(
    run_time: int, seed: int = 1, objective: int | None = None, believed: int | None = None, **conditions: float
) -> Simulation:
    """``SLOTS`` infer requests whose runs take ``run_time`` ns; the scheduler starts from ``believed``."""
    rules = SchedulerRules(QueueLimits(1024, 1 << 40), objective=None if objective is None else Objective(objective))
    scheduler = Scheduler("m", rules, [PoolSpec(SLOTS)])
    scheduler.seed(0, [(1, believed or run_time)])
    return Simulation(scheduler, run_time, seed, objective=objective, **conditions)  # type: ignore[arg-type]


def capacity(run_time: int) -> float:
    return SLOTS / run_time * SECOND


def steady(sim: Simulation, clients: list[Clients], seconds: int, settle: int = 3) -> Outcomes:
    sim.offer(clients, 0, settle * SECOND)
    return sim.offer(clients, settle * SECOND, (settle + seconds) * SECOND)


@pytest.mark.parametrize("load", [1.5, 4, 8])
@pytest.mark.parametrize(("run_time", "deadline"), [(6 * MS, 150 * MS), (15 * MS, 200 * MS), (40 * MS, 200 * MS)])
def test_with_deadlines_goodput_stays_at_capacity(run_time: int, deadline: int, load: float) -> None:
    most = capacity(run_time)
    outcomes = steady(simulation(run_time), [Clients("all", load * most, deadline)], 4)
    assert outcomes.in_time["all"] >= 0.95 * 4 * most
    assert outcomes.in_time["all"] >= 0.98 * outcomes.answered["all"]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_below_capacity_hardly_any_request_is_refused(load: float) -> None:
    most = capacity(15 * MS)
    outcomes = steady(simulation(15 * MS), [Clients("all", load * most, 200 * MS)], 20)
    assert outcomes.in_time["all"] >= 0.99 * outcomes.offered["all"]


@pytest.mark.parametrize("load", [1.5, 4])
@pytest.mark.parametrize(
    ("hurried", "deadlines"),
    [(0.5, (50 * MS, 500 * MS)), (0.2, (60 * MS, 2 * SECOND)), (0.1, (100 * MS, 10 * SECOND))],
)
def test_patient_and_urgent_requests_get_their_shares(hurried: float, deadlines: tuple[int, int], load: float) -> None:
    most = capacity(15 * MS)
    clients = [
        Clients("hurried", hurried * load * most, deadlines[0]),
        Clients("patient", (1 - hurried) * load * most, deadlines[1]),
    ]
    # Patient requests wait out a possible burst for as long as they have time.
    outcomes = steady(simulation(15 * MS), clients, 10, settle=14)
    assert outcomes.in_time["hurried"] >= 0.8 * hurried * most * 10
    assert outcomes.in_time["patient"] >= 0.8 * (1 - hurried) * most * 10


def test_below_capacity_urgent_requests_go_first_and_patient_ones_are_in_time_too() -> None:
    most = capacity(15 * MS)
    clients = [Clients("hurried", 0.4 * most, 60 * MS), Clients("patient", 0.45 * most, 600 * MS)]
    outcomes = steady(simulation(15 * MS), clients, 15)
    assert outcomes.in_time["hurried"] >= 0.95 * outcomes.offered["hurried"]
    assert outcomes.in_time["patient"] >= 0.99 * outcomes.offered["patient"]


def test_clients_without_deadlines_are_not_starved_by_a_flood_with_deadlines() -> None:
    most = capacity(15 * MS)
    clients = [Clients("flood", 3 * most, 100 * MS), Clients("quiet", 0.1 * most)]
    outcomes = steady(simulation(15 * MS), clients, 20)
    assert outcomes.answered["quiet"] >= 0.95 * outcomes.offered["quiet"]
    assert max(outcomes.latencies["quiet"]) < 1.5 * SECOND


@pytest.mark.parametrize("load", [2, 5])
def test_an_objective_without_deadlines_keeps_goodput_at_capacity(load: float) -> None:
    most = capacity(15 * MS)
    outcomes = steady(simulation(15 * MS, objective=150 * MS), [Clients("all", load * most)], 10)
    assert outcomes.in_time["all"] >= 0.97 * most * 10


def test_sustained_overload_with_generous_deadlines_does_not_make_every_client_wait() -> None:
    most = capacity(15 * MS)
    outcomes = steady(simulation(15 * MS), [Clients("all", 2 * most, 20 * SECOND)], 10, settle=25)
    assert outcomes.in_time["all"] >= 0.97 * most * 10
    assert max(outcomes.latencies["all"]) < 1.5 * SECOND


def test_a_burst_within_the_deadlines_is_answered_completely() -> None:
    most = capacity(15 * MS)
    sim = simulation(15 * MS)
    clients = [Clients("all", 3 * most, 10 * SECOND)]
    sim.offer(clients, 0, SECOND)
    outcomes = sim.offer([], SECOND, 10 * SECOND)
    assert sim.refused == 0
    assert outcomes.answered == outcomes.in_time


@given(
    believed=st.sampled_from([MS, 5 * MS, 60 * MS, 150 * MS, 1000 * MS]),
    load=st.sampled_from([0.5, 2.0, 4.0]),
    spread=st.sampled_from([0.05, 0.2]),
    letting_go=st.sampled_from([0, 5 * MS, 20 * MS]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=examples(10), deadline=None)
def test_wrong_initial_service_times_are_corrected(
    believed: int, load: float, spread: float, letting_go: int, seed: int
) -> None:
    run_time, most = 15 * MS, capacity(15 * MS)
    sim = simulation(run_time, seed, believed=believed, spread=spread, letting_go=letting_go)
    outcomes = steady(sim, [Clients("all", load * most, 200 * MS)], 4, settle=6)
    assert outcomes.in_time["all"] >= 0.85 * min(outcomes.offered["all"], 4 * most)


def test_a_model_that_was_slower_than_every_deadline_for_a_while_is_tried_again() -> None:
    sim, at = simulation(15 * MS), 0
    clients = [Clients("all", 100, 200 * MS)]
    in_time = []
    for run_time in (15 * MS, 400 * MS, 15 * MS):
        sim.run_time = run_time
        sim.offer(clients, at, at + 5 * SECOND)
        in_time.append(sim.offer(clients, at + 5 * SECOND, at + 10 * SECOND).in_time["all"])
        at += 10 * SECOND
    assert in_time[0] >= 0.95 * 500
    assert in_time[1] == 0
    assert in_time[2] >= 0.95 * 500


def test_a_client_with_hopeless_deadlines_does_not_harm_the_others() -> None:
    most = capacity(15 * MS)
    clients = [Clients("all", 2 * most, 200 * MS), Clients("hopeless", most, 16 * MS, wire=0)]
    outcomes = steady(simulation(15 * MS), clients, 10)
    assert outcomes.in_time["all"] >= 0.85 * most * 10
