"""Snapshots on their way to another process."""

import json
from dataclasses import replace

import pytest

from inferd.metrics import record_json
from inferd.metrics.snapshot import ServerSnapshot
from tests.metrics import made_up

SERVER = made_up.server(
    models=[made_up.model(tuning="settled", objective=0.01), replace(made_up.model("n"), queue=None, tuning=None)],
    loads={("m", "ok"): 2},
    hung={("m", "1", "CPU"): 1},
    reloads={"ok": 1},
    tunings={("m", "1"): made_up.model(tuning="x").tuning},
)


def test_what_is_read_is_what_was_written() -> None:
    assert record_json.decode(ServerSnapshot, json.loads(record_json.encode(SERVER))) == SERVER


def test_more_than_the_record_has_is_passed_over() -> None:
    assert record_json.decode(ServerSnapshot, record_json.plain(SERVER) | {"later": [1]}) == SERVER


@pytest.mark.parametrize("value", [{}, [], {"versions": 3}, {**record_json.plain(SERVER), "process": 7}])
def test_what_is_no_such_record_is_refused(value: object) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        record_json.decode(ServerSnapshot, value)
