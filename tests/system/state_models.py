"""Models with a state, which the server carries or the model keeps, and the repository that holds one of each."""

from pathlib import Path
from typing import Any

import numpy as np

from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import ov
from tests import models
from tests.engine import models as small
from tests.system import echo_models
from tests.system.wire import request

_op = ov.opset13

IDLE = "[sequences]\nidle_timeout = 0.3\n"
"""Settings under which a sequence is soon over."""

_CARRIED = '[sequences.state.before]\noutput = "total"\n'


def write(root: Path) -> Path:
    """The repository; gives ``root`` back."""
    models.save(small.stateful(), root, "inner", settings="[sequences]\nmax_active = 8\n")
    models.save(small.stateful(), root, "three", settings="[sequences]\nmax_active = 3\n")
    models.save(small.stateful(), root, "brief", settings=IDLE)
    models.save(
        small.accumulator(),
        root,
        "batched",
        settings='[batching]\nmax_size = 8\n[sequences.state.state]\noutput = "next"\nbatch_axis = 1\n',
    )
    models.save(steps_so_far(), root, "steps", settings=echo_models.serial(1024) + _CARRIED)
    models.save(frail(), root, "frail", settings=_CARRIED + "[warmup]\nruns = 0\n")
    return root


def steps_so_far() -> "ov.Model":
    """``steps`` INT32 [], ``before`` INT32 [] -> ``total`` INT32 []: their sum, after ``steps`` steps of work."""
    working = echo_models.steps()
    before = _op.parameter([], ov.Type.i32)
    before.output(0).set_names({"before"})
    total = _op.add(working.get_results()[0].input_value(0), before)
    total.output(0).set_names({"total"})
    return ov.Model([total], [*working.get_parameters(), before], "steps_so_far")


def frail() -> "ov.Model":
    """``x`` FP32 [4], ``to`` INT64 [2], ``before`` FP32 [4] -> ``total`` FP32 [4], ``y``.

    ``total`` is x + before, ``y`` the same in shape ``to``: the run fails where that does not end in 4.
    """
    x, before, to = small.parameter([4]), small.parameter([4], name="before"), small.parameter([2], ov.Type.i64, "to")
    total = _op.add(x, before)
    return small.model({"total": total, "y": _op.broadcast(total, to)}, [x, to, before])


def flags(sequence: int | str, *, start: bool = False, end: bool = False, **more: int) -> dict[str, Any]:
    """Parameters of a request of a sequence."""
    return {"sequence_id": sequence, "sequence_start": start, "sequence_end": end, **more}


def add(value: float, sequence: int | str, model: str = "inner", **more: Any) -> pb.ModelInferRequest:
    """A request to a model that keeps the sum itself, FP32 [1,2]; it begins with twice its first value."""
    return request(model, {"x": np.full((1, 2), value, np.float32)}, parameters=flags(sequence, **more))


def work(count: int, sequence: int | str, name: str = "", **more: Any) -> pb.ModelInferRequest:
    """A request to ``steps``, which is answered with the sequence's steps so far."""
    message = request("steps", {"steps": np.array(count, np.int32)}, name, flags(sequence, **more))
    message.outputs.add(name="total")
    return message


def try_shape(last: int, sequence: int | str, name: str = "", **more: Any) -> pb.ModelInferRequest:
    """A request to ``frail`` that adds 1, and fails unless ``last`` is 4."""
    inputs = {"x": np.ones(4, np.float32), "to": np.array([1, last], np.int64)}
    return request("frail", inputs, name, flags(sequence, **more))


def first(answer: pb.ModelInferResponse, output: int = 0) -> float:
    """The first element of an answer's output."""
    dtype = {"FP32": np.float32, "INT32": np.int32}[answer.outputs[output].datatype]
    return float(np.frombuffer(answer.raw_output_contents[output], dtype)[0])
