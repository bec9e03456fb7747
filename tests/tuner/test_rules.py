"""The tuner's rules."""

from pathlib import Path

from inferd.config.daemon import Settings
from inferd.engine.cpu_budget import cpu_budget, cpu_threads
from inferd.tuner.rules import TunerRules
from tests.engine import models


def settings(folder: Path, **more: object) -> Settings:
    return Settings(model_repository=folder, cache_dir=folder / "cache", profile_dir=folder / "profiles", **more)


def test_rules_are_those_of_the_settings(tmp_path: Path) -> None:
    given = settings(tmp_path, tuning="online", tuning_budget=7.0, cpu_threads=1, cache_max_bytes=1 << 20)
    assert TunerRules.of(given) == TunerRules("online", 7.0, 1, tmp_path / "cache", 1 << 20)


def test_threads_are_never_more_than_this_process_may_use(tmp_path: Path) -> None:
    most = cpu_budget().threads
    assert [cpu_threads(settings(tmp_path, cpu_threads=n)) for n in (0, 1, most + 1)] == [most, 1, most]


def test_a_job_has_what_the_rules_say_and_what_it_is_for(tmp_path: Path) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path))
    job = TunerRules("start", 7.0, 2, tmp_path / "cache", 1 << 20).job(source, nice=5, companions=[source])
    assert (job.source, job.cache, job.cache_bytes, job.cpu_threads) == (source, tmp_path / "cache", 1 << 20, 2)
    assert (job.nice, job.samples, job.companions) == (5, (), [source])
