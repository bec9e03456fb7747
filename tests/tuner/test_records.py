"""The profile that a version is loaded with, on a small real model."""

from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from inferd.engine.model import Engine
from inferd.tuner.plan import key_of
from inferd.tuner.profile import Profile, Profiles
from inferd.tuner.records import TuningRecords
from inferd.tuning.candidates import Candidate
from tests.engine import models


@pytest.fixture(scope="module")
def engine() -> Engine:
    """With two threads to give."""
    return models.engine()


def test_a_profile_is_served_with_unless_the_device_does_not_have_what_it_says(engine: Engine, tmp_path: Path) -> None:
    source = models.source(models.save(models.scaled(2.0, (1, 4)), tmp_path / "model")).settled()
    key = key_of(engine, source, "CPU")
    good = Candidate(1, 2, 3)
    profile = Profile(source.name, 1, "CPU", key, good, "", None, 99.0, False, 1.0, "now", {}, ())
    profiles = Profiles(tmp_path / "profiles")
    assert profiles.store(profile)
    tuned = TuningRecords(engine, profiles).tuned(source)
    assert (tuned.config.execution.streams, tuned.config.execution.infer_requests) == (1, 3)

    assert profiles.store(replace(profile, winner=replace(good, requests=4000)))
    records = TuningRecords(engine, profiles)
    with capture_logs() as said:
        assert records.tuned(source) == source
    (line,) = said
    assert (line["log_level"], line["event"]) == ("warning", "profile ignored: out of reach")
    assert line["reason"].startswith("winner: requests must be 1..")
    assert line["reason"].endswith(", not 4000")
    assert records.of(source.name, "").profile is None
