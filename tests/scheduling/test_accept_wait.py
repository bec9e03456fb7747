"""How probes estimate the time that calls wait before inferd sees them."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.accept_wait import AcceptWait

MS = 1_000_000
QUICK = 400_000
"""How long a call waits on an idle server."""
NOISE = 1 * MS

durations = st.integers(0, 5_000 * MS)


def after(*waits: int, every: int = 10_000 * MS) -> AcceptWait:
    """Probes that arrived one after another, with these waits."""
    wait = AcceptWait()
    for number, took in enumerate(waits):
        wait.sent(number * every)
        assert wait.arrived(number * every, number * every + took) == took
    return wait


def test_there_is_no_wait_before_the_first_probe() -> None:
    assert AcceptWait().current == 0


@given(st.lists(st.integers(0, NOISE - 1), min_size=1))
def test_an_idle_server_costs_nothing(waits: list[int]) -> None:
    assert after(*waits).current == 0


@given(st.integers(0, NOISE), durations)
def test_the_wait_is_the_excess_over_an_idle_servers_wait(idle: int, stands: int) -> None:
    current = after(idle, *3 * [idle + stands]).current
    assert current == (stands if stands >= NOISE else 0)


@given(st.lists(st.integers(0, NOISE - 1)), durations)
def test_one_hiccup_changes_nothing(waits: list[int], hiccup: int) -> None:
    """Nor does the first probe of a server that has just started."""
    assert after(*waits, hiccup).current == 0


@given(st.lists(durations), st.integers(0, NOISE - 1))
def test_one_quick_probe_ends_the_wait(waits: list[int], quick: int) -> None:
    assert after(*waits, quick).current == 0


@given(st.lists(durations, min_size=1))
def test_the_wait_is_never_negative_and_never_above_a_probes_wait(waits: list[int]) -> None:
    assert 0 <= after(*waits).current <= max(waits[-3:])


@given(st.lists(st.integers(0, NOISE), min_size=1), durations)
def test_a_probe_that_has_not_arrived_has_waited_since_it_was_sent(waits: list[int], age: int) -> None:
    wait = after(*waits)
    now = 10**15
    wait.sent(now)
    wait.look(now + age)
    assert max(0, age - NOISE) - NOISE <= wait.current <= age
    wait.sent(now + age + 1)
    wait.look(now + age + 1)
    assert wait.current >= age - 2 * NOISE, "the oldest of them says most"


@given(st.lists(st.integers(1, 100 * MS), min_size=1, max_size=60), st.data())
def test_probes_sent_before_an_arrived_one_are_not_awaited(gaps: list[int], data: st.DataObject) -> None:
    wait, now, sent = AcceptWait(), 0, []
    for gap in gaps:
        now += gap
        sent.append(now)
        wait.sent(now)
    arriving = data.draw(st.sampled_from(sent))
    assert wait.arrived(arriving, now) == now - arriving
    assert all(wait.arrived(earlier, now) is None for earlier in sent if earlier <= arriving)
    later = [one for one in sent if one > arriving]
    wait.look(now + 10_000 * MS)
    assert (wait.current >= 10_000 * MS - NOISE) == bool(later), "the next is waited for, if there is one"


@given(st.lists(st.integers(0, 10**15)))
def test_a_probe_that_was_not_sent_has_not_waited(made_up: list[int]) -> None:
    wait = AcceptWait()
    assert [wait.arrived(sent, 10**15) for sent in made_up] == len(made_up) * [None]
    assert wait.current == 0


def test_lost_probes_are_not_awaited() -> None:
    wait = after(QUICK)
    wait.sent(10**12)
    wait.look(2 * 10**12)
    assert wait.current > 0
    wait.lost()
    wait.look(2 * 10**12)
    assert wait.current == 0
    assert wait.arrived(10**12, 3 * 10**12) is None


def test_a_server_that_starts_into_a_flood_does_not_take_it_for_idle() -> None:
    assert after(*3 * [50 * MS]).current == 49 * MS


def test_probes_are_few_without_a_wait_and_as_many_as_allowed_with_one() -> None:
    wait = AcceptWait()
    assert wait.wanted(0, busy=False), "the first"
    wait.sent(0)
    wait.arrived(0, QUICK)
    assert [wait.wanted(ms * MS, busy=False) for ms in (1, 500, 999, 1000)] == [False, False, False, True]
    assert [wait.wanted(ms * MS, busy=True) for ms in (1, 249, 250)] == [False, False, True]
    wait.sent(300 * MS)
    assert wait.wanted(301 * MS, busy=False), "the last has not arrived"
    wait = after(*3 * [50 * MS], every=100 * MS)
    assert wait.wanted(251 * MS, busy=False), "they wait"


def test_the_pause_is_shorter_while_a_probe_is_in_flight_or_calls_wait() -> None:
    wait = AcceptWait()
    assert wait.pause == 250 * MS
    wait.sent(0)
    assert wait.pause == 100 * MS
    wait.arrived(0, QUICK)
    assert wait.pause == 250 * MS
    assert after(*3 * [50 * MS]).pause == 100 * MS


def test_in_a_long_queue_the_oldest_probe_alone_tells_the_wait() -> None:
    wait, now = AcceptWait(), 0
    while wait.wanted(now, busy=True):
        wait.sent(now)
        now += 100 * MS
    assert now == 64 * 100 * MS
    wait.look(now)
    assert wait.current == now - NOISE
    assert wait.arrived(0, now) == now
    assert wait.wanted(now, busy=True)
