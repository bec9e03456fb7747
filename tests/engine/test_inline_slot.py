"""The inline slot: how it differs from the other slots, and which models may run on it."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferd.config.model import parse
from inferd.engine.inline_slot import InlineSlot, may_run_inline
from inferd.engine.model import _signature
from inferd.engine.runtime import ov
from inferd.engine.slot import RunFailed
from inferd.tensors import DType
from tests.engine import models
from tests.engine.models import numbers, tensor
from tests.system import echo_models


def inline(network: "ov.Model", calls: list[int]) -> InlineSlot:
    compiled = ov.Core().compile_model(network, "CPU", {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 2})
    signature = _signature(network, parse("", "m"))
    return InlineSlot(compiled.create_infer_request(), signature, lambda: calls.append(threading.get_ident()))


def test_a_run_is_over_when_start_returns_and_calls_nothing_back() -> None:
    calls: list[int] = []
    slot = inline(models.scaled(3), calls)
    for n in range(5):
        slot.write([[tensor([n, 1, 2, 3])]])
        slot.start()
        assert slot.poll()
        assert slot.wait(0.0)
        assert numbers(slot.read([0])[0]).tolist() == [3 * n, 3, 6, 9]
    slot.cancel()
    assert calls == []
    slot.close()


def test_a_run_that_fails_raises_hands_nothing_over_and_leaves_the_slot_usable() -> None:
    calls: list[int] = []
    slot = inline(models.broadcasting(), calls)
    slot.write([[tensor([1, 2, 3, 4]), tensor([3, 2], DType.INT64)]])
    with pytest.raises(RunFailed, match="4 cannot be broadcasted"):
        slot.start()
    assert calls == []
    slot.write([[tensor([1, 2, 3, 4]), tensor([1, 4], DType.INT64)]])
    slot.start()
    assert numbers(slot.read([0])[0]).ravel().tolist() == [1, 2, 3, 4]
    slot.close()


def may(network: "ov.Model", device: str = "CPU", settings: str = "") -> bool:
    return may_run_inline(device, network, _signature(network, parse(settings, "m")))


def test_only_what_always_takes_as_long_may_run_inline_unasked() -> None:
    assert may(models.scaled(2))
    assert not may(models.scaled(2), "GPU")
    assert not may(models.scaled(2), "AUTO:CPU")
    assert not may(models.identity([-1]))
    assert not may(echo_models.steps())
    assert not may(picking())


def picking() -> "ov.Model":
    """Takes the sum of the elements that are not 0: the more there are, the longer that takes."""
    op = ov.opset13
    x = op.parameter([8], ov.Type.f32)
    places = op.squeeze(op.non_zero(x), op.constant(np.array([0])))
    picked = op.gather(x, places, op.constant(np.array(0)))
    return ov.Model([op.result(op.reduce_sum(picked, op.constant(np.array([0])), True))], [x], "picking")


def loaded_path(tmp_path: Path, network: "ov.Model", settings: str = "") -> bool:
    ov.save_model(network, tmp_path / "model.xml")
    loaded = models.engine().load(models.source(tmp_path / "model.xml", settings))
    try:
        return loaded.pools[0].pool.inline
    finally:
        loaded.close()


def test_a_model_runs_inline_where_that_is_asked_for_and_not_where_something_else_is(tmp_path: Path) -> None:
    assert loaded_path(tmp_path, models.scaled(2), '[execution]\npath = "inline"\ninfer_requests = 4\n')
    assert not loaded_path(tmp_path, models.scaled(2), '[execution]\npath = "async"\n')
    assert not loaded_path(tmp_path, models.scaled(2), '[execution]\npath = "sync"\n')


@pytest.mark.parametrize("wanted", [True, False])
def test_what_was_seen_live_is_believed_where_the_settings_leave_it_open(wanted: bool, tmp_path: Path) -> None:
    ov.save_model(models.scaled(2), tmp_path / "model.xml")
    ov.save_model(models.identity([-1]), tmp_path / "open.xml")

    def load(file: str, settings: str = "") -> tuple[bool, bool]:
        source = replace(models.source(tmp_path / file, settings), inline=wanted)
        loaded = models.engine().load(source)
        [entry] = loaded.pools
        loaded.close()
        return entry.pool.inline, entry.may_be_inline

    assert load("model.xml") == (wanted, True)
    assert load("model.xml", '[execution]\npath = "async"\n') == (False, True)
    assert load("model.xml", '[execution]\npath = "inline"\n') == (True, True)
    assert load("open.xml") == (False, False)


def test_what_takes_long_does_not_run_inline_unasked(tmp_path: Path) -> None:
    op = ov.opset13
    x = op.parameter([1, 1024], ov.Type.f32)
    weights = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    y: ov.Output = x.output(0)
    for _ in range(40):
        y = op.tanh(op.matmul(y, op.constant(weights), False, False)).output(0)
    assert not loaded_path(tmp_path, ov.Model([op.result(y)], [x], "weighty"))


@pytest.mark.parametrize("path", ["sync", "inline"])
def test_a_run_of_one_thread_is_handed_over_as_its_failure_would_be_lost(path: str, tmp_path: Path) -> None:
    ov.save_model(models.broadcasting(), tmp_path / "model.xml")
    settings = f'[execution]\npath = "{path}"\nstreams = 1\nthreads = 1\n[warmup]\nruns = 0\n'
    loaded = models.engine().load(models.source(tmp_path / "model.xml", settings))
    (entry,) = loaded.pools
    assert not entry.pool.inline
    with pytest.raises(RunFailed, match="cannot be broadcasted"):
        entry.pool.run_all([tensor([1, 2, 3, 4]), tensor([3, 2], DType.INT64)])
    loaded.close()
