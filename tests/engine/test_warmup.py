"""Warm-up: what must run, what may fail, and which batch sizes are tried."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from inferd.engine.model import LoadedModel
from inferd.engine.pool import Pool
from inferd.engine.runtime import ov
from inferd.engine.slot import RunFailed
from inferd.engine.source import ModelSource
from inferd.engine.warmup import WarmUp, uses_dynamic_batching, warm_up
from inferd.errors import ConfigurationError, LoadFailed
from inferd.tensors import Shape, Tensor
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.engine.models import numbers, op, parameter, tensor

BATCHED = "[batching]\nmax_size = 8\n"
CARRIED = BATCHED + "[sequences.state.state]\noutput = 'next'\nbatch_axis = 1\n"


def load(network: ov.Model, folder: Path, toml: str = "") -> LoadedModel:
    return models.engine().load(models.source(models.save(network, folder), toml))


def refusal(network: ov.Model, folder: Path, toml: str = "") -> str:
    with pytest.raises(LoadFailed) as refused:
        load(network, folder, toml)
    return str(refused.value)


# -- what has to run -----------------------------------------------------------------


def test_a_fixed_model_that_fails_to_warm_up_is_broken(tmp_path: Path) -> None:
    # Zeros are no shape to broadcast to.
    assert "warm-up on CPU: " in refusal(models.broadcasting(), tmp_path)
    assert load(models.broadcasting(), tmp_path, "[warmup]\nruns = 0").pools[0].times == ()


def squaring_up() -> ov.Model:
    """Takes any number of elements by its shape, and four in truth."""
    x = parameter([-1])
    return models.model({"y": op.reshape(x, op.constant(np.array([2, 2])), False)}, [x])


def test_a_dynamic_model_that_fails_on_made_up_input_is_served_and_the_failure_told(tmp_path: Path) -> None:
    with capture_logs() as logged:
        loaded = load(squaring_up(), tmp_path)
    assert [entry["event"] for entry in logged] == ["warm-up skipped"]
    assert loaded.pools[0].times == ()
    loaded.pools[0].pool.run_all([tensor([1, 2, 3, 4])])
    (answer,) = loaded.pools[0].pool.read(0, [0])
    assert numbers(answer).tolist() == [[1, 2], [3, 4]]


def test_warm_up_runs_on_the_shape_it_is_given_and_has_to_succeed_there(tmp_path: Path) -> None:
    assert load(squaring_up(), tmp_path, "[warmup.shapes]\nx = [4]").pools[0].times[0][1] > 0
    assert "warm-up on CPU: " in refusal(squaring_up(), tmp_path, "[warmup.shapes]\nx = [3]")


@pytest.mark.parametrize(
    ("shapes", "said"),
    [("z = [4]", "warmup.shapes.z: no such input; allowed: x"), ("x = [5]", r"shape \[5\] does not fit; allowed: \[4")],
)
def test_warm_up_shapes_that_do_not_fit_are_refused(shapes: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(models.identity([4]), tmp_path, f"[warmup.shapes]\n{shapes}")


# -- how many rows -------------------------------------------------------------------


class Timed(Pool):
    """A pool whose runs take what ``duration`` says of their rows, or fail where that is 0; it keeps the shapes."""

    def __init__(self, duration: Callable[[int], float]) -> None:
        super().__init__("CPU", 1, FakeSlot)
        self.tried: list[list[Shape]] = []
        self._duration = duration

    def run_all(self, inputs: Sequence[Tensor]) -> float:
        self.tried.append([t.shape for t in inputs])
        if not (took := self._duration(inputs[0].shape[0])):
            raise RunFailed("no memory on the device")
        return took


def constant(_: int) -> float:
    return 1e6


def in_proportion(rows: int) -> float:
    return 1e6 * rows


def tried(
    folder: Path, toml: str, duration: Callable[[int], float], network: ov.Model | None = None
) -> tuple[Timed, tuple[tuple[int, float], ...]]:
    """The pool after the warm-up of ``network`` ([rows,3] if none), and the times it gave."""
    source: ModelSource = models.source(models.save(network or models.scaled(2, [1, 3]), folder), toml)
    pool = Timed(duration)
    return pool, warm_up(source, models.engine().inspect(source), pool).times


@pytest.mark.parametrize(("most", "rows"), [(8, [1, 2, 4, 8]), (6, [1, 2, 4, 6]), (2, [1, 2]), (3, [1, 2, 3])])
def test_ever_more_rows_are_tried_up_to_the_bound_while_they_gain(most: int, rows: list[int], tmp_path: Path) -> None:
    pool, times = tried(tmp_path, f"[batching]\nmax_size = {most}\n[warmup]\nruns = 3", constant)
    assert times == tuple((n, 1e6) for n in rows)
    assert pool.tried == [[(n, 3)] for n in rows for _ in range(3)]


def test_no_more_rows_are_tried_once_they_gain_nothing(tmp_path: Path) -> None:
    assert tried(tmp_path, BATCHED, in_proportion)[1] == ((1, 1e6), (2, 2e6))
    # Gains up to four rows, and the step to eight is in proportion.
    levelling = {1: 1e6, 2: 1.5e6, 4: 2e6, 8: 4e6, 16: 4e6}
    toml = "[batching]\nmax_size = 16"
    assert tried(tmp_path, toml, lambda rows: levelling[rows])[1] == ((1, 1e6), (2, 1.5e6), (4, 2e6), (8, 4e6))


def test_the_time_of_the_last_round_counts(tmp_path: Path) -> None:
    cooling = iter([5e6, 2e6, 1e6])
    toml = "[batching]\nmax_size = 1\n[warmup]\nruns = 3"
    assert tried(tmp_path, toml, lambda _: next(cooling))[1] == ((1, 1e6),)


def test_the_very_first_run_is_told_apart(tmp_path: Path) -> None:
    cooling = iter([5e6, 1e6, 3e6, 1e6])
    source = models.source(models.save(models.scaled(2, [1, 3]), tmp_path), "[batching]\nmax_size = 2")
    warm = warm_up(source, models.engine().inspect(source), Timed(lambda _: next(cooling)))
    assert warm == WarmUp(((1, 1e6), (2, 1e6)), first=5e6)


@pytest.mark.parametrize(
    ("toml", "shape"),
    [
        (BATCHED + "enabled = false", (1, 3)),
        (BATCHED + "enabled = false\n[warmup.shapes]\nx = [5, 3]", (5, 3)),
        ("[batching]\nmax_size = 1", (1, 3)),
        ("", (1, 3)),
    ],
    ids=["no dynamic batching", "given rows", "a batch of one", "no batch"],
)
def test_without_dynamic_batching_one_number_of_rows_is_tried(toml: str, shape: Shape, tmp_path: Path) -> None:
    pool, times = tried(tmp_path, toml, constant)
    assert times == ((shape[0], 1e6),)
    assert pool.tried == [[shape]] * 2


def test_given_shapes_say_all_but_the_rows_where_dynamic_batching_is_on(tmp_path: Path) -> None:
    pool, _ = tried(tmp_path, BATCHED + "[warmup.shapes]\nx = [7, 5]", constant, models.scaled(2, [-1, -1]))
    assert pool.tried == [[(rows, 5)] for rows in (1, 2, 4, 8) for _ in range(2)]


def test_rows_are_counted_along_each_input_s_batch_axis(tmp_path: Path) -> None:
    pool, _ = tried(tmp_path, CARRIED, constant, models.accumulator())
    assert pool.tried[::2] == [[(rows, 1), (2, rows, 1)] for rows in (1, 2, 4, 8)]


def test_a_model_that_keeps_its_own_state_is_warmed_up_as_it_is(tmp_path: Path) -> None:
    source = models.source(models.save(models.stateful(), tmp_path))
    signature = models.engine().inspect(source)
    pool = Timed(constant)
    assert warm_up(source, signature, pool) == WarmUp(((1, 1e6),), first=1e6)
    assert pool.tried == [[(1, 2)]] * 2
    assert not uses_dynamic_batching(source.config, signature)


def test_no_warm_up_learns_nothing(tmp_path: Path) -> None:
    pool, times = tried(tmp_path, BATCHED + "[warmup]\nruns = 0", constant)
    assert (times, pool.tried) == ((), [])


def test_what_was_learnt_before_more_rows_failed_is_kept(tmp_path: Path) -> None:
    with capture_logs() as logged:
        _, times = tried(tmp_path, BATCHED, lambda rows: 1e6 if rows < 4 else 0)
    assert times == ((1, 1e6), (2, 1e6))
    assert [(entry["event"], entry["problem"]) for entry in logged] == [("warm-up skipped", "no memory on the device")]


def test_a_real_model_is_timed_with_one_row_and_with_two_at_least(tmp_path: Path) -> None:
    times = load(models.accumulator(), tmp_path, CARRIED).pools[0].times
    assert [rows for rows, _ in times] == [1, 2, 4, 8][: len(times)]
    assert len(times) > 1
    assert all(took > 0 for _, took in times)
