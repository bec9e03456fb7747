"""The text of the units; test_systemd.py has systemd read them."""

import pytest

from inferd.systemd import units


@pytest.mark.parametrize("name", units.UNITS)
def test_every_placeholder_is_filled_in(name: str) -> None:
    text = units.unit(name, "/opt/100% mine/inferd", "Written by a test.")
    assert "ExecStart=/opt/100%% mine/inferd serve\n" in text
    assert "{" not in text
    assert text.startswith("# Written by a test.\n")


def test_instances_read_their_own_settings_after_the_common_ones() -> None:
    text = units.unit("inferd@.service", "/inferd", "")
    assert text.index("/etc/inferd/inferd.env") < text.index("/etc/inferd/%i.env")
    assert "%i" not in units.unit("inferd.service", "/inferd", "")
