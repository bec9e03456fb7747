"""Reading trace contexts, by the examples and rules of W3C Trace Context."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.trace_context import STATE_CHARACTERS, TraceContext, parse

TRACE, PARENT, OWN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{PARENT}-01"
NOTHING_SENT = ("", " ", "-", "---", "\0", "00", f"00-{TRACE}")

hexadecimal = st.integers(0, 255).map("{:02x}".format)
trace_ids = st.integers(1, 2**128 - 1).map("{:032x}".format)
span_ids = st.integers(1, 2**64 - 1).map("{:016x}".format)
white_space = st.text(" \t", max_size=3)
keys = st.from_regex(r"[a-z][a-z0-9_*/-]{0,20}(@[a-z][a-z0-9]{0,5})?", fullmatch=True)
values = st.from_regex(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,40}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", fullmatch=True)
members = st.dictionaries(keys, values, max_size=32).map(lambda pairs: [f"{k}={v}" for k, v in pairs.items()])


def read(traceparent: str, tracestate: str = "") -> TraceContext | None:
    return parse(traceparent, tracestate, lambda: OWN)


def state(text: str) -> str:
    """The tracestate ``text`` as it is kept with a valid traceparent."""
    context = read(SENT, text)
    assert context is not None, "a tracestate made its traceparent invalid"
    assert context == TraceContext(TRACE, OWN, PARENT, sampled=True, state=context.state)
    return context.state


# -- traceparent ------------------------------------------------------------------


def test_a_context_is_the_clients_trace_with_a_span_of_our_own() -> None:
    assert read(SENT) == TraceContext(TRACE, OWN, PARENT, sampled=True, state="")
    assert read(f"00-{TRACE}-{PARENT}-00") == TraceContext(TRACE, OWN, PARENT, sampled=False, state="")


@given(trace_ids, span_ids, st.integers(0, 255), white_space, white_space)
def test_every_valid_context_is_read_back(trace: str, span: str, flags: int, before: str, after: str) -> None:
    context = read(f"{before}00-{trace}-{span}-{flags:02x}{after}")
    # Only the lowest bit means sampled; the others have other meanings.
    assert context == TraceContext(trace, OWN, span, sampled=flags % 2 == 1)


@pytest.mark.parametrize("version", ["01", "0a", "cc", "fe"])
@pytest.mark.parametrize("more", ["", "-", "-what-the-future-will-be-like", "-\n"])
def test_a_later_version_is_read_as_far_as_it_is_known(version: str, more: str) -> None:
    assert read(f"{version}-{TRACE}-{PARENT}-01{more}") == read(SENT)


@pytest.mark.parametrize(
    "malformed",
    [
        *NOTHING_SENT,
        f"ff-{TRACE}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01-more",
        # Version 00 ends with its flags.
        f"00-{TRACE}-{PARENT}-01.",
        f"00-{TRACE}-{PARENT}-01-",
        f"00-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
        f"cc-{TRACE}-{PARENT}-01.what-the-future-will-be-like",
        # Version.
        f".0-{TRACE}-{PARENT}-01",
        f"0.-{TRACE}-{PARENT}-01",
        f"000-{TRACE}-{PARENT}-01",
        f"0-{TRACE}-{PARENT}-01",
        f"CC-{TRACE}-{PARENT}-01",
        # Trace.
        f"00-{'0' * 32}-{PARENT}-01",
        f"cc-{'0' * 32}-{PARENT}-01",
        f"00-.{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE[1:]}.-{PARENT}-01",
        f"00-{TRACE}1-{PARENT}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        # Parent.
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-.{PARENT[1:]}-01",
        f"00-{TRACE}-{PARENT[1:]}.-01",
        f"00-{TRACE}-{PARENT}1-01",
        f"00-{TRACE}-{PARENT[1:]}-01",
        f"00-{TRACE}-{PARENT.upper()}-01",
        # Flags.
        f"00-{TRACE}-{PARENT}-.0",
        f"00-{TRACE}-{PARENT}-0.",
        f"00-{TRACE}-{PARENT}-001",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-0A",
        f"00-{TRACE}-{PARENT}",
        # Other digits, other dashes, other ends.
        f"00-{TRACE[1:]}٣-{PARENT}-01",
        f"00–{TRACE}–{PARENT}–01",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE}-{PARENT}-01\0",
        f"{SENT},{SENT}",
        f"{SENT}{SENT}",
    ],
)
def test_a_malformed_header_counts_as_not_sent(malformed: str) -> None:
    assert read(malformed, "congo=t61rcWkgMzE") is None


@given(st.text(), st.text())
def test_no_text_is_an_error(traceparent: str, tracestate: str) -> None:
    assert read(traceparent, tracestate) is None
    assert len(state(tracestate)) <= STATE_CHARACTERS


@given(st.integers(0, len(SENT) - 1), st.characters(exclude_characters=string.hexdigits.lower()))
def test_one_wrong_character_anywhere_is_malformed(place: int, wrong: str) -> None:
    if SENT[place] != wrong:
        assert read(SENT[:place] + wrong + SENT[place + 1 :]) is None


def test_a_span_id_is_asked_for_only_where_it_is_used() -> None:
    def never() -> str:
        raise AssertionError("nothing was sent")

    assert parse(SENT[:-1], "", never) is None


# -- tracestate -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("", ""),
        ("congo=t61rcWkgMzE", "congo=t61rcWkgMzE"),
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("foo=1 \t , \t bar=2, \t baz=3", "foo=1,bar=2,baz=3"),
        ("\t foo=1 \t", "foo=1"),
        # Empty members, as joining several entries leaves them.
        (",foo=1", "foo=1"),
        ("foo=1,", "foo=1"),
        ("foo=1, ,\t,bar=2", "foo=1,bar=2"),
        (",", ""),
        ("fw529a3039@dt=FfAwNzI2OTMy;0", "fw529a3039@dt=FfAwNzI2OTMy;0"),
        ("0t@foo=1", "0t@foo=1"),
        ("k= inner space", "k= inner space"),
    ],
)
def test_a_state_is_kept_as_a_list_without_gaps(sent: str, kept: str) -> None:
    assert state(sent) == kept


def test_every_character_that_may_be_in_a_member_is_kept() -> None:
    key = string.ascii_lowercase + string.digits + "_-*/"
    value = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) not in ",=")
    assert state(f"{key}={value}") == f"{key}={value}"
    assert state(f"{key}@a-z0-9_-*/={value}") == f"{key}@a-z0-9_-*/={value}"


@pytest.mark.parametrize(
    "malformed",
    [
        "foo",
        "=1",
        "foo=",
        "foo =1",
        "FOO=1",
        "foo.bar=1",
        "foo@=1",
        "@foo=1",
        "foo@@bar=1",
        "foo@bar@baz=1",
        "foo=bar=baz",
        "foo=é",
        "foo=1\n",
        "foo=\x7f",
        "foo=1;bar=2=3",
        f"{'z' * 257}=1",
        f"{'t' * 242}@v=1",
        f"t@{'v' * 15}=1",
        f"foo={'v' * 257}",
        # A key that occurs twice.
        "foo=1,foo=1",
        "foo=1,foo=2",
    ],
)
def test_a_malformed_state_is_dropped_by_itself(malformed: str) -> None:
    assert state(malformed) == ""
    assert state(f"bar=2,{malformed}") == ""


def test_a_list_has_32_members_at_most() -> None:
    listed = [f"k{i}=v" for i in range(33)]
    assert state(",".join(listed[:32])) == ",".join(listed[:32])
    assert state(",".join(listed)) == ""
    assert state("," * 32) == ""


@pytest.mark.parametrize("key", [f"{'z' * 256}", f"{'t' * 241}@{'v' * 14}"])
def test_the_longest_key_is_kept(key: str) -> None:
    assert state(f"{key}=1") == f"{key}=1"


@given(members)
def test_members_that_fit_are_kept_in_order_and_others_are_dropped_whole(listed: list[str]) -> None:
    kept = state(",".join(listed))
    remaining = iter(listed)
    assert all(member in remaining for member in kept.split(",") if kept)
    if len(",".join(listed)) <= STATE_CHARACTERS:
        assert kept == ",".join(listed)
    else:
        # All are shorter than those cut first, and not even the next one would have fitted.
        left_out = listed[len(kept.split(",")) if kept else 0]
        assert len(f"{kept},{left_out}") > STATE_CHARACTERS


def test_large_members_go_before_those_at_the_end() -> None:
    large, small = f"large={'v' * 200}", [f"k{i}={'v' * 90}" for i in range(4)]
    assert state(",".join([*small, large])) == ",".join(small)
    assert state(",".join([large, *small])) == ",".join(small)
    assert state(f"{'k' * 256}={'v' * 256},foo=1") == "foo=1"


def test_the_last_members_go_if_all_are_small() -> None:
    small = [f"k{i}={'v' * 97}" for i in range(9)]  # a hundred characters each
    assert state(",".join(small)) == ",".join(small[:5])
    assert len(state(",".join(small))) <= STATE_CHARACTERS
