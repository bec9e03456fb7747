"""Tuning without a daemon: each model alone, and each next to the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from inferd.engine.source import ModelSource
from inferd.errors import InferdError
from inferd.tuner.offline import TURNS, OfflineTuner, ProfileNotStored
from inferd.tuner.probe_process import ProbeProcess
from inferd.tuner.profile import Profile, Profiles, Sustained
from inferd.tuner.rules import TunerRules
from inferd.tuner.session import Progress
from inferd.tuning.outcome import Outcome
from tests.engine import models


class Silent:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.searched: list[str] = []
        self.looks = 0
        self.passed_over: list[str] = []
        self.found: list[Profile | None] = []

    @contextmanager
    def model(self, name: str, version: int, device: str, size: int) -> Iterator[None]:
        assert (version, device) == (1, "CPU")
        assert size > 1
        self.searched.append(name)
        yield

    def tell(self, progress: Progress) -> None:
        self.looks += progress.measured is not None

    def check(self, probe: ProbeProcess, outcome: Outcome) -> Sustained | None:
        assert outcome.winner is not None
        assert probe.arrive(outcome.winner.candidate, 50, 0.1) is not None
        return Sustained(50, 0.5, 1.0)

    def result(self, outcome: Outcome, profile: Profile | None) -> None:
        assert outcome.points
        self.found.append(profile)

    def untunable(self, source: ModelSource, why: str) -> None:
        self.passed_over.append(f"{source.name}: {why}")


def offline(folder: Path, show: Silent, profiles: Path | None = None) -> OfflineTuner:
    stored = Profiles(profiles or folder / "profiles")
    rules = TunerRules("off", 1.0, 2, folder / "cache", 1 << 30)
    return OfflineTuner(models.engine(folder / "cache"), stored, rules, show)


def source(folder: Path, name: str, settings: str = "") -> ModelSource:
    # One way of placing threads is one process less to start.
    toml = f'{settings}\n[execution]\npinning = "on"\npath = "async"'
    return models.source(models.save(models.scaled(2), folder / name), toml, name)


def test_a_model_is_searched_checked_and_its_profile_stored(tmp_path: Path) -> None:
    show = Silent()
    work = offline(tmp_path, show)
    profile = work.one(source(tmp_path, "m"))
    assert profile is not None
    assert profile == work.profiles.stored("m", 1, "CPU")
    assert profile.sustained == Sustained(50, 0.5, 1.0)
    assert (show.searched, show.found) == (["m"], [profile])
    assert show.looks >= 2


def test_what_can_not_be_tuned_is_passed_over(tmp_path: Path) -> None:
    show = Silent()
    assert offline(tmp_path, show).one(source(tmp_path, "m", 'devices = ["AUTO:CPU"]')) is None
    assert show.passed_over == ["m: AUTO chooses its own settings"]


def test_models_tuned_together_are_measured_next_to_each_other_as_they_were_chosen(tmp_path: Path) -> None:
    show = Silent()
    failures: list[InferdError] = []
    one, other = source(tmp_path, "one"), source(tmp_path, "other")
    found = offline(tmp_path, show).together([one, other], failures.append)
    assert failures == []
    assert show.searched == ["one", "other"] * TURNS
    assert [(p.model, p.reason.partition("; measured under load from ")[2]) for p in found] == [
        ("one", "other"),
        ("other", "one"),
    ]


def test_one_that_fails_does_not_keep_the_others_from_being_tuned(tmp_path: Path) -> None:
    failures: list[InferdError] = []
    broken = replace(source(tmp_path, "broken"), file_set=models.source(tmp_path / "gone.xml").file_set)
    show = Silent()
    found = offline(tmp_path, show).together([source(tmp_path, "m", 'devices = ["AUTO:CPU"]'), broken], failures.append)
    assert (found, len(failures)) == ([], TURNS)


def test_a_profile_that_can_not_be_stored_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ProfileNotStored):
        offline(tmp_path, Silent(), tmp_path / "file" / "profiles").one(source(tmp_path, "m"))
