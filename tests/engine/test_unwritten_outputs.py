"""An output that a run does not write is right or refused, and never the data of another request."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from inferd.engine.model import LoadedModel
from inferd.engine.runtime import ov
from inferd.engine.unwritten_outputs import repair
from inferd.errors import InvalidRequest, LoadFailed
from inferd.tensors import DType, Tensor
from tests import empty_models
from tests.empty_cases import GIVEN_EMPTY, LEFT_UNWRITTEN, Case
from tests.empty_models import Feed
from tests.engine import models

KNOWN_TO_ONNXRUNTIME = (
    "loop",
    "loop_of_any_width",
    "loop_of_less_than_none",
    "while",
    "loop_in_branch",
    "loop_in_loop",
    "chosen_in_order",
    "empty_branch",
    "empty_onnx_constant",
)
_DTYPES = {t.numpy: t for t in DType if t not in (DType.BF16, DType.BYTES)}


def answer(loaded: LoadedModel, feed: Feed, slot: int = 0) -> Mapping[str, "np.ndarray[Any, Any]"]:
    """What ``loaded`` makes of ``feed``, by output."""
    signature, pool = loaded.signature, loaded.pools[0].pool
    given = [feed[spec.name] for spec in signature.inputs]
    inputs = [Tensor(_DTYPES[array.dtype], array.shape, array.tobytes()) for array in given]
    problem = loaded.empty_inputs.problem([t.shape for t in inputs]) if loaded.empty_inputs else ""
    if problem:
        raise InvalidRequest("", problem)
    pool.start(slot, [inputs])
    while not (ended := pool.sweep()):
        pass
    assert [c.failure for c in ended] == [None]
    read = pool.read(slot, range(len(signature.outputs)))
    return {spec.name: models.numbers(tensor) for spec, tensor in zip(signature.outputs, read, strict=True)}


def check(case: Case, loaded: LoadedModel, slot: int = 0) -> None:
    """Holds the answer to what is empty against what is right."""
    if case.right is None:
        with pytest.raises(InvalidRequest, match=case.names):
            answer(loaded, case.empty, slot)
        return
    seen = answer(loaded, case.empty, slot)
    assert seen.keys() == case.right.keys()
    for name, right in case.right.items():
        np.testing.assert_array_equal(seen[name], np.asarray(right), name)


@pytest.mark.parametrize("case", [*LEFT_UNWRITTEN, *GIVEN_EMPTY], ids=str)
def test_no_answer_has_what_another_request_left(case: Case, tmp_path: Path) -> None:
    loaded = models.engine().load(models.source(case.write(tmp_path)))
    try:
        check(case, loaded)
        for _ in range(2):
            answer(loaded, case.other)
            check(case, loaded)
    finally:
        loaded.close()


@pytest.mark.parametrize("path", ["sync", "inline"])
@pytest.mark.parametrize("case", LEFT_UNWRITTEN, ids=str)
def test_nor_has_it_however_it_is_run(case: Case, path: str, tmp_path: Path) -> None:
    loaded = models.engine().load(models.source(case.write(tmp_path), f'[execution]\npath = "{path}"\n'))
    try:
        answer(loaded, case.other)
        check(case, loaded)
    finally:
        loaded.close()


@pytest.mark.parametrize("case", LEFT_UNWRITTEN, ids=str)
def test_nor_what_ran_on_another_infer_request_of_the_same_stream(case: Case, tmp_path: Path) -> None:
    settings = "[execution]\nstreams = 1\ninfer_requests = 2\n"
    loaded = models.engine().load(models.source(case.write(tmp_path), settings))
    try:
        answer(loaded, case.other, 1)
        check(case, loaded, 0)
    finally:
        loaded.close()


@pytest.mark.parametrize("case", LEFT_UNWRITTEN, ids=str)
def test_what_was_made_right_stays_so_in_the_cache(case: Case, tmp_path: Path) -> None:
    source = models.source(case.write(tmp_path / "model"))
    models.engine(tmp_path / "cache").load(source).close()
    loaded = models.engine(tmp_path / "cache").load(source)
    try:
        assert loaded.pools[0].from_cache
        answer(loaded, case.other)
        check(case, loaded)
    finally:
        loaded.close()


@pytest.mark.parametrize("case", [c for c in LEFT_UNWRITTEN if c.name in KNOWN_TO_ONNXRUNTIME], ids=str)
def test_what_is_right_is_what_onnxruntime_computes(case: Case, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(case.write(tmp_path))
    assert case.right is not None
    for output, seen in zip(session.get_outputs(), session.run(None, dict(case.empty)), strict=True):
        np.testing.assert_array_equal(seen, np.asarray(case.right[output.name]))


def test_a_model_without_such_operations_stays_as_it_is() -> None:
    model = models.scaled(2, [-1, 4])
    before = [node.get_friendly_name() for node in model.get_ops()]
    assert repair(model) == frozenset()
    assert [node.get_friendly_name() for node in model.get_ops()] == before


def test_the_signature_is_that_of_the_model_in_its_file(tmp_path: Path) -> None:
    case = next(c for c in LEFT_UNWRITTEN if c.name == "first_of_none")
    file = case.write(tmp_path)
    loaded = models.engine().load(models.source(file))
    read = ov.Core().read_model(file)
    assert [spec.name for spec in loaded.signature.outputs] == [port.any_name for port in read.outputs]
    loaded.close()


def test_a_loop_that_gives_a_value_of_its_last_turn_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LoadFailed, match=r"Loop 'uncarried' may run no iteration, and its output 0 is not carried between"
    ):
        models.engine().load(models.source(empty_models.uncarried(tmp_path)))
