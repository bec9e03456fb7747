"""A request like one before is refused, counted and told of as any other."""

from pathlib import Path

import numpy as np
import pytest

from inferd.errors import ModelUnavailable
from inferd.lifecycle import Phase
from inferd.rpc import wire
from inferd.rpc.call import Caller
from inferd.tensors import DType
from tests import models
from tests.event_loop import on_loop
from tests.rpc.parts import Parts
from tests.system.wire import request


@on_loop
async def test_a_request_like_one_before_is_counted_for_its_model_when_that_is_gone(tmp_path: Path) -> None:
    models.save(models.identity(DType.FP32, [4]), tmp_path, "m")
    parts = Parts(tmp_path, {})
    await parts.catalog.load_all()
    parts.lifecycle.move(Phase.READY)
    message = request("m", {"x": np.zeros(4, np.float32)}, parameters={"triton_enable_empty_final_response": True})

    def ask(request_id: str) -> tuple[str, bool]:
        message.id = request_id
        call = parts.inference.begin(message.SerializeToString(), wire.alone, Caller(None))
        asked.append(call)
        return call.id, call.final_response

    asked: list = []
    assert [ask("1"), ask("2")] == [("1", True), ("2", True)]
    first, second = [await call.future for call in asked]
    assert first != second
    await parts.catalog.unload("m")
    assert ask("3") == ("3", True)
    with pytest.raises(ModelUnavailable):
        await asked[-1].future
    assert parts.seen[-1][:3] == ("m", "", "unavailable")
    await parts.catalog.close()
