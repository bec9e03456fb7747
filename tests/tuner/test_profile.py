"""Profiles on disk: a stored profile is read back whole; other files are left alone and logged."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from inferd.axes import QUANTITIES
from inferd.tuner.profile import FORMAT, Profile, ProfilePoint, Profiles, Sustained, as_json, profile_of
from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimate
from inferd.tuning.goal import Goal, GoalVerdict
from inferd.tuning.outcome import Gain, Outcome

WINNER = Candidate(2, 4, 4, 8, True, False, "performance", "sync")
OTHER = Candidate(1, 4, 1)
KEY = {"model": "abc", "openvino": "2026.4", "CPU threads": "4"}
POINT = ProfilePoint(WINNER, 8, 800, 400.0, 390.0, 410.0, 405.0, 0.01, 0.02, True)
PROFILE = Profile(
    model="m",
    version=3,
    device="CPU",
    key=KEY,
    winner=WINNER,
    reason="2 streams give 400 answers/s",
    objective=0.025,
    percentile=99.0,
    out_of_reach=True,
    seconds=12.5,
    tuned_at="2026-01-02T03:04:05+00:00",
    gains={"the LATENCY hint's answer": 1.5},
    points=(POINT, replace(POINT, candidate=OTHER, eligible=False)),
    left_out=("9 streams: the device said no",),
    sustained=Sustained(360.0, 0.9, 0.995),
    pinned=True,
    previous=OTHER,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(1, 4096)
CANDIDATE = st.builds(
    Candidate,
    *[st.integers(1, axis.most) for axis in QUANTITIES.values()],
    st.sampled_from([None, True, False]),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, "any", "performance", "efficient"]),
    st.sampled_from(["async", "sync"]),
)
ESTIMATED = st.builds(ProfilePoint, CANDIDATE, COUNT, COUNT, *[FINITE] * 6, st.booleans())
PROFILES = st.builds(
    Profile,
    model=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    version=COUNT,
    device=st.sampled_from(["CPU", "GPU.1", "AUTO:GPU,CPU", "BATCH:CPU(4)"]),
    key=st.dictionaries(st.text(), st.text(), max_size=4),
    winner=CANDIDATE,
    reason=st.text(),
    objective=st.none() | FINITE,
    percentile=FINITE,
    out_of_reach=st.booleans(),
    seconds=FINITE,
    tuned_at=st.text(),
    gains=st.dictionaries(st.text(), FINITE, max_size=3),
    points=st.lists(ESTIMATED, max_size=3).map(tuple),
    left_out=st.lists(st.text(), max_size=3).map(tuple),
    sustained=st.none() | st.builds(Sustained, FINITE, FINITE, FINITE),
    pinned=st.booleans(),
    previous=st.none() | CANDIDATE,
)


def stored_in(directory: Path, profile: Profile = PROFILE) -> Path:
    """``profile`` in ``directory``, and the file it is kept in."""
    assert Profiles(directory).store(profile)
    [file] = (directory / profile.model).iterdir()
    return file


def found(directory: Path, key: Mapping[str, str] = KEY) -> tuple[Profile | None, list[Any]]:
    with capture_logs() as logged:
        profile = Profiles(directory).find("m", 3, "CPU", key)
    return profile, logged


# -- there and back --------------------------------------------------------------------


@given(PROFILES)
def test_what_is_stored_is_found_again_whole(profile: Profile) -> None:
    with TemporaryDirectory() as directory:
        profiles = Profiles(Path(directory))
        assert profiles.store(profile)
        assert profiles.find(profile.model, profile.version, profile.device, profile.key) == profile


def test_no_field_is_left_at_its_default_by_the_profile_of_these_tests(tmp_path: Path) -> None:
    # Or the next test would not notice one that is lost.
    defaults = {f.name for f in fields(Profile) if f.name != "format" and f.default == getattr(PROFILE, f.name)}
    assert defaults == set()
    stored_in(tmp_path)
    assert found(tmp_path) == (PROFILE, [])


def test_one_that_asks_for_what_could_not_run_is_read_as_it_would_run(tmp_path: Path) -> None:
    """As those before may: one stream of one thread that is "sync", where OpenVINO loses failures."""
    alone = Candidate(1, 1, 2)
    told = replace(PROFILE, winner=alone, previous=alone, points=(replace(POINT, candidate=alone),))
    file = stored_in(tmp_path, told)
    text = file.read_text()
    assert text.count('"path": "async"') == 3
    file.write_text(text.replace('"path": "async"', '"path": "sync"'))
    assert found(tmp_path) == (told, [])
    assert told.chosen is not None


def test_the_file_is_json_that_people_and_other_programs_read(tmp_path: Path) -> None:
    text = stored_in(tmp_path).read_text()
    assert text == as_json(PROFILE)
    assert text.endswith("}\n")
    assert '\n  "winner": {\n    "streams": 2,\n' in text

    def refused(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads(text, parse_constant=refused)
    assert list(read) == [f.name for f in fields(Profile)]
    assert (read["format"], read["key"]) == (FORMAT, KEY)


def test_the_newest_one_is_kept(tmp_path: Path) -> None:
    stored_in(tmp_path)
    newer = replace(PROFILE, pinned=False, previous=None, sustained=None, objective=None)
    stored_in(tmp_path, newer)
    assert found(tmp_path)[0] == newer


def test_each_model_version_and_device_has_its_own(tmp_path: Path) -> None:
    profiles = Profiles(tmp_path)
    kept = [
        replace(PROFILE, model=model, version=version, device=device)
        for model in ("m", "n")
        for version in (1, 11)
        for device in ("CPU", "GPU.0", "GPU.1")
    ]
    assert all(map(profiles.store, kept))
    assert [profiles.stored(p.model, p.version, p.device) for p in kept] == kept
    assert profiles.stored("m", 2, "CPU") is None


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("GPU.1", "3.GPU.1.json"),
        ("AUTO:GPU,CPU", "3.AUTO_GPU_CPU.json"),
        ("BATCH:GPU(16)", "3.BATCH_GPU_16_.json"),
        ("../../CPU", "3..._.._CPU.json"),
    ],
)
def test_devices_make_names_that_any_file_system_takes(device: str, name: str, tmp_path: Path) -> None:
    file = stored_in(tmp_path, replace(PROFILE, device=device))
    assert file == tmp_path / "m" / name


def test_what_was_measured_of_the_winner_is_at_hand() -> None:
    assert PROFILE.chosen == POINT
    assert replace(PROFILE, winner=Candidate(7, 7, 7)).chosen is None


# -- what a search found -----------------------------------------------------------------


def estimate(candidate: Candidate) -> Estimate:
    return Estimate(
        candidate, 8, 800, 400.0, 390.0, 410.0, 405.0, 0.01, 0.02, 0.995, True, GoalVerdict.KEEPS, 400.0, 0.025
    )


def outcome(*gains: Gain, winner: Estimate | None = None) -> Outcome:
    points = (estimate(WINNER), estimate(OTHER))
    return Outcome(winner, "why", Goal("throughput", 0.025, 95.0), False, points, {Candidate(9, 9, 9): "no"}, gains)


def test_an_outcome_becomes_a_profile() -> None:
    gain = Gain(OTHER, "the LATENCY hint's answer", 1.23456, True)
    sustained = Sustained(100.0, 0.9, 1.0)
    profile = profile_of("m", 3, "CPU", KEY, outcome(gain, winner=estimate(WINNER)), 12.3456, "now", sustained)
    assert profile == Profile(
        "m",
        3,
        "CPU",
        KEY,
        WINNER,
        "why",
        0.025,
        95.0,
        False,
        12.3,
        "now",
        {"the LATENCY hint's answer": 1.2346},
        (POINT, replace(POINT, candidate=OTHER)),
        ("9 streams, 9 threads, 9 requests, batch 1, async: no",),
        sustained,
    )


def test_where_nothing_ran_there_is_no_profile() -> None:
    assert profile_of("m", 3, "CPU", KEY, outcome(), 1.0, "now") is None


def test_a_gain_over_what_gave_no_answers_is_not_told() -> None:
    gains = (Gain(OTHER, "nothing", math.inf, True), Gain(OTHER, "less", math.nan, True), Gain(WINNER, "it", 1.0, True))
    profile = profile_of("m", 3, "CPU", KEY, outcome(*gains, winner=estimate(WINNER)), 1.0, "now")
    assert profile is not None
    assert profile.gains == {"it": 1.0}


# -- what does not hold ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "differs"),
    [
        (KEY | {"openvino": "2027.1"}, "openvino: 2026.4 then, 2027.1 now"),
        (KEY | {"CPU threads": "8", "model": "def"}, "CPU threads: 4 then, 8 now, model: abc then, def now"),
        ({k: v for k, v in KEY.items() if k != "model"}, "model: abc then, - now"),
        (KEY | {"driver": "1"}, "driver: - then, 1 now"),
    ],
    ids=["another part", "two parts", "a part less", "a part more"],
)
def test_one_for_something_else_is_left_alone_and_the_log_says_what_differs(
    key: Mapping[str, str], differs: str, tmp_path: Path
) -> None:
    file = stored_in(tmp_path)
    profile, [line] = found(tmp_path, key)
    assert profile is None
    assert (line["event"], line["differs"]) == ("profile ignored: conditions differ", differs)
    assert (line["model"], line["version"], line["device"]) == ("m", 3, "CPU")
    assert file.exists()


def test_one_for_something_else_can_still_be_looked_at(tmp_path: Path) -> None:
    stored_in(tmp_path)
    assert Profiles(tmp_path).stored("m", 3, "CPU") == PROFILE


def test_where_there_is_none_nothing_is_said(tmp_path: Path) -> None:
    assert found(tmp_path) == (None, [])
    assert found(tmp_path / "absent") == (None, [])


def edited(directory: Path, **changes: Any) -> None:
    file = stored_in(directory)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file: Invalid JSON"),
        (b"\0\xff\xfe", "the file: Invalid JSON"),
        (as_json(PROFILE).encode()[:-20], "the file: Invalid JSON"),
        (b"[" * 100_000, "the file: Invalid JSON"),
        (b"[]", "the file: "),
        (b"{}", "format: Field required"),
        (b'{"format": 1}', "model: Field required"),
    ],
    ids=["empty", "bytes", "cut", "deep", "a list", "nothing in it", "a stamp alone"],
)
def test_a_damaged_file_is_a_warning_and_no_profile(content: bytes, reason: str, tmp_path: Path) -> None:
    file = stored_in(tmp_path)
    file.write_bytes(content)
    profile, [line] = found(tmp_path)
    assert profile is None
    assert (line["log_level"], line["event"]) == ("warning", "profile ignored: damaged")
    assert line["file"] == str(file)
    assert line["reason"].startswith(reason)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"winner": {"streams": "many", "threads": 1, "requests": 1}}, "winner.streams: "),
        ({"winner": {"streams": 0, "threads": 1, "requests": 1}}, "winner.streams must be 1..1024, not 0"),
        ({"winner": {"streams": 1, "threads": -4, "requests": 1}}, "winner.threads must be 1..4096, not -4"),
        (
            {"winner": {"streams": 1, "threads": 1, "requests": 10**9}},
            "winner.requests must be 1..4096, not 1000000000",
        ),
        (
            {"winner": {"streams": 1, "threads": 1, "requests": 1, "batch": 10**50}},
            "winner.batch must be 1..65536, not a",
        ),
        ({"winner": {"streams": 1, "threads": 1, "requests": math.nan}}, "winner.requests: "),
        ({"winner": {"streams": math.inf, "threads": 1, "requests": 1}}, "winner.streams: "),
        ({"previous": {"streams": 1, "threads": 1, "requests": 5000}}, "previous.requests must be 1..4096, not 5000"),
        ({"objective": math.nan}, "objective: "),
        ({"gains": {"it": math.inf}}, "gains.it: "),
        ({"winner": {"streams": 1, "threads": 1, "requests": 1, "path": "magic"}}, "winner.path: "),
        ({"points": [{}]}, "points.0.candidate: Field required"),
        ({"pinned": "perhaps"}, "pinned: "),
    ],
    ids=[
        "no number",
        "none",
        "negative",
        "huge",
        "longer than any number",
        "not a number",
        "infinite",
        "huge before",
        "no objective",
        "infinite gain",
        "no path",
        "a point",
        "no flag",
    ],
)
def test_a_hand_that_slipped_is_told_where(changes: Mapping[str, Any], reason: str, tmp_path: Path) -> None:
    edited(tmp_path, **changes)
    profile, [line] = found(tmp_path)
    assert profile is None
    assert line["event"] == "profile ignored: damaged"
    assert line["reason"].startswith(reason)


def test_one_of_another_format_is_a_warning_and_no_profile_whatever_else_is_in_it(tmp_path: Path) -> None:
    stored_in(tmp_path).write_text(json.dumps({"format": FORMAT + 1, "winner": "the third"}))
    profile, [line] = found(tmp_path)
    assert profile is None
    assert (line["log_level"], line["event"]) == ("warning", "profile ignored: unknown format")
    assert line["format"] == FORMAT + 1


def test_a_file_that_can_not_be_read_is_a_warning_and_no_profile(tmp_path: Path) -> None:
    file = stored_in(tmp_path)
    file.unlink()
    file.mkdir()
    profile, [line] = found(tmp_path)
    assert profile is None
    assert (line["log_level"], line["event"], line["reason"]) == (
        "warning",
        "profile not read",
        "Is a directory",
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [(os.mkfifo, "not a regular file"), (lambda file: file.symlink_to("/dev/zero"), "not a regular file")],
    ids=["pipe", "device"],
)
def test_a_file_that_would_block_is_a_warning_and_no_profile(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    file = stored_in(tmp_path)
    file.unlink()
    make(file)
    profile, [line] = found(tmp_path)
    assert profile is None
    assert (line["event"], line["reason"]) == ("profile not read", reason)


# -- writing -----------------------------------------------------------------------------


def test_folders_and_files_are_for_this_user_alone(tmp_path: Path) -> None:
    directory = tmp_path / "profiles"
    file = stored_in(directory)
    modes = [path.stat().st_mode & 0o777 for path in (directory, file.parent, file)]
    assert modes == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ended"])
def test_whoever_is_stopped_while_writing_leaves_the_old_one(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stored_in(tmp_path)

    def stopped(_: int) -> None:
        # At this moment the new one is written, though not for sure.
        assert len(list(file.parent.iterdir())) == 2
        raise error

    monkeypatch.setattr(os, "fsync", stopped)
    newer = replace(PROFILE, pinned=False)
    if isinstance(error, OSError):
        with capture_logs() as logged:
            assert not Profiles(tmp_path).store(newer)
        assert [line["reason"] for line in logged] == ["No space left on device"]
    else:
        with pytest.raises(KeyboardInterrupt):
            Profiles(tmp_path).store(newer)
    assert list(file.parent.iterdir()) == [file]
    assert found(tmp_path) == (PROFILE, [])


def test_a_new_one_appears_only_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Profile | None] = []
    replaced = os.replace

    def looked_at(source: str, target: Path) -> None:
        seen.append(Profiles(tmp_path).stored("m", 3, "CPU"))
        assert json.loads(Path(source).read_text())["model"] == "m"
        replaced(source, target)

    monkeypatch.setattr(os, "replace", looked_at)
    stored_in(tmp_path)
    assert seen == [None]
    assert found(tmp_path)[0] == PROFILE


def test_what_a_crashed_writer_left_is_no_profile(tmp_path: Path) -> None:
    file = stored_in(tmp_path)
    (file.parent / "tmpabc.part").write_text(as_json(PROFILE)[:100])
    assert found(tmp_path) == (PROFILE, [])


def test_where_it_can_not_be_stored_a_warning_says_so(tmp_path: Path) -> None:
    # Not a folder without permissions: root may write there.
    taken = tmp_path / "profiles"
    taken.write_text("")
    with capture_logs() as logged:
        assert not Profiles(taken).store(PROFILE)
    [line] = logged
    assert (line["log_level"], line["event"], line["reason"]) == ("warning", "profile not stored", "File exists")
    assert line["file"] == str(taken / "m" / "3.CPU.json")
