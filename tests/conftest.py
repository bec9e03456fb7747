from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from inferd.demo import models

# How long an example takes says nothing about it on a machine that others use as well.
settings.register_profile("inferd", deadline=None)
settings.load_profile("inferd")

_FIGURES = pytest.StashKey[list[str]]()

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_repository() -> Path:
    """The model repository `make serve` serves; fetched on the first use ever."""
    repository = ROOT / "models"
    models.fetch(repository, print)
    return repository


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says what a test saw, in the summary at the end of the run: figures are for reading, not for asserting."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if said := config.stash.get(_FIGURES, []):
        terminalreporter.section("figures")
        for line in said:
            terminalreporter.write_line(line)
