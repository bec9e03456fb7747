import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from inferd.demo import models
from tests import effort, marks

# How long an example takes says nothing about it on a machine that others use as well.
settings.register_profile("inferd", deadline=None, max_examples=effort.FULL)
settings.register_profile("quick", settings.get_profile("inferd"), max_examples=effort.FULL // 10)
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


NODE_IDS = pytest.StashKey[list[str]]()
"""Of all tests that were collected, also those that are not selected."""


def rows_of(node_id: str) -> tuple[set[str], str]:
    """The rows of tests/marks.py that stand for a test, and the id of its case; "" where it has but one."""
    test, _, case = node_id.partition("[")
    return {test, test.partition("::")[0]}, case.removesuffix("]")


def is_left_out(node_id: str) -> bool:
    """Whether `make test` runs other cases of a test instead of this."""
    rows, case = rows_of(node_id)
    return bool(case) and any(not re.fullmatch(marks.SAMPLED[row], case) for row in rows & marks.SAMPLED.keys())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[NODE_IDS] = [item.nodeid for item in items]
    for rows, mark in ((marks.SLOW, pytest.mark.slow), (marks.SERIAL, pytest.mark.serial)):
        marked = {row for tests in rows.values() for row in tests}
        for item in items:
            if marked & rows_of(item.nodeid)[0]:
                item.add_marker(mark)
    for item in items:
        if is_left_out(item.nodeid):
            item.add_marker(pytest.mark.slow)


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
