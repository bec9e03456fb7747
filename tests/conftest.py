from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from inferd.demo import models
from tests import effort, marks

# How long an example takes says nothing about it on a machine that others use as well.
settings.register_profile("inferd", deadline=None, max_examples=effort.FULL)
settings.register_profile("quick", settings.get_profile("inferd"), max_examples=effort.FULL // 5)
settings.load_profile("inferd")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_repository() -> Path:
    """The model repository `make serve` serves; fetched on the first use ever."""
    repository = ROOT / "models"
    models.fetch(repository, print)
    return repository


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says what a test saw, in the summary at the end of the run: figures are for reading, not for asserting."""
    return lambda line: record_property("figure", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for rows, mark in ((marks.SLOW, pytest.mark.slow), (marks.SERIAL, pytest.mark.serial)):
        marked = {row for tests in rows.values() for row in tests}
        for item in items:
            test = item.nodeid.partition("[")[0]
            if marked & {test, test.partition("::")[0]}:
                item.add_marker(mark)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (report for found in terminalreporter.stats.values() for report in found)
    # By way of the reports they come from other processes too.
    said = [
        value
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, value in report.user_properties
        if name == "figure"
    ]
    if said:
        terminalreporter.section("figures")
        for line in said:
            terminalreporter.write_line(str(line))
