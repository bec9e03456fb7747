"""Requests equal to one that failed get its error without a run."""

import pytest

from inferd.engine.failed_inputs import FailedInputs
from inferd.errors import InferenceFailed
from inferd.tensors import DType, Tensor
from tests.engine.models import tensor
from tests.replies import ask

SECOND = 1_000_000_000
FAILED = InferenceFailed("m", "shapes do not fit")


@pytest.mark.parametrize(
    ("sent", "same"),
    [
        (tensor([1, 2]), True),
        (Tensor(DType.FP32, (2,), memoryview(tensor([1, 2]).data)), True),  # type: ignore[arg-type]
        (tensor([1, 3]), False),
        (tensor([[1, 2]]), False),
        (tensor([1, 2, 3]), False),
    ],
    ids=["equal", "a view", "other numbers", "other shape", "longer"],
)
def test_only_equal_input_is_told(sent: Tensor, same: bool) -> None:
    known, (bad, _), (request, _) = FailedInputs(), ask([1, 2]), ask(sent)
    bad.device = "CPU"
    known.keep(bad, FAILED, 0)
    assert known.find(request, 1) is (FAILED if same else None)
    assert request.device == ("CPU" if same else "")


def test_it_is_forgotten_after_a_while_and_what_is_large_is_not_kept() -> None:
    known, (bad, _), (large, _) = FailedInputs(), ask([1, 2]), ask([0] * (1 << 20))
    known.keep(bad, FAILED, 0)
    known.keep(large, FAILED, 0)
    assert known.find(large, 1) is None
    assert known.find(bad, 29 * SECOND) is FAILED
    assert known.find(bad, 31 * SECOND) is None
    assert not known


def test_only_the_latest_are_kept() -> None:
    known, asked = FailedInputs(), [ask([n]) for n in range(20)]
    for request, _ in asked:
        known.keep(request, FAILED, 0)
    assert [known.find(request, 1) is FAILED for request, _ in asked] == [False] * 4 + [True] * 16
