"""The systemctl calls of ``inferd rollover``, with a systemctl of a few lines; test_systemd.py has the real one."""

from collections.abc import Sequence

import pytest

from inferd.cli.rollover import rollover


class Units:
    """Units by name, as systemctl shows and changes them. Units in ``broken`` neither start nor stop."""

    def __init__(self, **statuses: str) -> None:
        self.statuses = statuses
        self.active = {"blue"}
        self.enabled = {"blue"}
        self.broken: set[str] = set()
        self.did: list[str] = []

    def __call__(self, arguments: Sequence[str]) -> tuple[int, str]:
        verb, unit = arguments[0], arguments[-1]
        if verb == "show":
            return 0, {
                "ActiveState": "active" if unit in self.active else "inactive",
                "StatusText": self.statuses.get(unit, ""),
                "UnitFileState": "enabled" if unit in self.enabled else "disabled",
            }[arguments[2]]
        self.did.append(f"{verb} {unit}")
        if unit in self.broken:
            return 1, ""
        {
            "start": self.active.add,
            "stop": self.active.discard,
            "enable": self.enabled.add,
            "disable": self.enabled.discard,
        }[verb](unit)
        return 0, ""


def test_the_new_one_serves_before_the_old_one_ends() -> None:
    units = Units(blue="serving 2 of 2 models", green="serving 2 of 2 models")
    assert rollover("blue", "green", fewer=False, systemctl=units) == 0
    assert units.did == ["start green", "stop blue", "enable green", "disable blue"]


def test_the_old_one_still_serves_when_the_new_one_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    units = Units()
    units.broken = {"green"}
    assert rollover("blue", "green", fewer=False, systemctl=units) == 1
    assert units.active == {"blue"}
    assert "blue still serves" in capsys.readouterr().err


def test_fewer_models_need_the_flag() -> None:
    units = Units(blue="serving 2 of 2 models", green="serving 1 of 2 models")
    assert rollover("blue", "green", fewer=False, systemctl=units) == 1
    assert (units.active, units.enabled) == ({"blue"}, {"blue"})
    assert rollover("blue", "green", fewer=True, systemctl=units) == 0
    assert (units.active, units.enabled) == ({"green"}, {"green"})


def test_an_empty_status_does_not_stop_the_rollover() -> None:
    assert rollover("blue", "green", fewer=False, systemctl=Units(blue="serving 2 of 2 models")) == 0


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("blue", "blue", "same unit"),
        ("green", "blue", "green is not active"),
        ("blue", "both", "both is already active"),
    ],
)
def test_an_impossible_rollover_changes_nothing(
    old: str, new: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    units = Units()
    units.active.add("both")
    assert rollover(old, new, fewer=False, systemctl=units) == 1
    assert units.did == []
    assert problem in capsys.readouterr().err


def test_an_old_one_that_does_not_end_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    units = Units()
    units.broken = {"blue"}
    assert rollover("blue", "green", fewer=False, systemctl=units) == 1
    assert "both serve" in capsys.readouterr().err
