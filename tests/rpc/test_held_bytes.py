"""What is held is what has arrived since a connection was first looked at, without what was delivered."""

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from inferd.rpc.held_bytes import HeldBytes, excess

PEERS = st.sampled_from("abc")
STEPS = st.lists(
    st.tuples(st.sampled_from(("arrive", "deliver", "look", "forget")), PEERS, st.integers(0, 1000)), max_size=60
)


@given(STEPS)
def test_held_is_what_arrived_and_was_not_delivered(steps: Sequence[tuple[str, str, int]]) -> None:
    held, arrived = HeldBytes(), dict.fromkeys("abc", 10_000)
    looked: dict[str, tuple[int, int]] = {}
    watched: set[str] = set()
    for what, peer, nbytes in steps:
        if what == "arrive":
            arrived[peer] += nbytes
        elif what == "deliver":
            held.delivered(peer, nbytes)
            if peer in looked:
                looked[peer] = looked[peer][0], looked[peer][1] + nbytes
        else:
            watched = watched | {peer} if what == "look" else watched - {peer}
            received = {one: arrived[one] for one in watched}
            looked = {one: looked.get(one, (arrived[one], 0)) for one in watched}
            assert held.look(received) == {
                one: max(0, arrived[one] - first - done) for one, (first, done) in looked.items()
            }
            assert bool(held) is bool(watched)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1000), max_size=8), st.integers(0, 3000))
def test_no_more_is_turned_away_than_must_be_and_the_largest_first(held: Mapping[str, int], budget: int) -> None:
    chosen = excess(held, budget)
    left = sum(nbytes for peer, nbytes in held.items() if peer not in chosen)
    assert left <= budget
    if chosen:
        assert left + held[chosen[-1]] > budget
        assert min(held[peer] for peer in chosen) >= max(
            (n for peer, n in held.items() if peer not in chosen), default=0
        )


@given(st.dictionaries(PEERS, st.integers(0, 1000), min_size=1), st.integers(-100, 4000))
def test_of_what_came_before_as_much_counts_as_the_process_has_grown(received: Mapping[str, int], grown: int) -> None:
    held = HeldBytes().look(received, grown)
    assert all(0 <= held[peer] <= received[peer] for peer in received)
    total = min(max(0, grown), sum(received.values()))
    assert total - len(received) <= sum(held.values()) <= total
