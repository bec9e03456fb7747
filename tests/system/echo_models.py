"""Models that are spoilt, slow or fail as a request asks, and the repository that holds one of each."""

from pathlib import Path

import numpy as np

from inferd.engine.runtime import ov
from inferd.tensors import DType
from tests import models

_op = ov.opset13
_STEP_SIZE = 256

SLOTS, QUEUE_LENGTH = 3, 16
"""Infer requests of the model `slots`, and how many may wait for one."""


def write(root: Path) -> Path:
    """The repository that most system tests serve; gives ``root`` back."""
    models.save(models.identity(DType.INT64, [-1]), root, "echo")
    models.save(models.identity(DType.BYTES, [-1]), root, "text")
    models.save(models.sum_and_difference([-1, 2]), root, "rows", settings="[batching]\nmax_size = 8")
    models.save(bytewise(), root, "bytewise")
    models.save(picky(), root, "picky", settings=serial(1024) + "[warmup]\nruns = 0")
    models.save(steps(), root, "steps", settings=serial(1024))
    models.save(steps(), root, "busy", settings=serial(1))
    models.save(steps(), root, "slots", settings=serial(QUEUE_LENGTH, SLOTS))
    broken = root / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.xml").write_text('<?xml version="1.0"?><net name="broken" version="11"><layers/></net>')
    return root


def serial(waiting: int, infer_requests: int = 1) -> str:
    """Settings that run one request at a time, or that many, and let ``waiting`` more wait."""
    return (
        f"[execution]\nstreams = {infer_requests}\ninfer_requests = {infer_requests}\n[queue]\nmax_length = {waiting}\n"
    )


def bytewise() -> "ov.Model":
    """``signed`` INT8 [4], ``unsigned`` UINT8 [4] -> ``sum`` INT32 [4]."""
    signed, unsigned = _input("signed", ov.Type.i8, [4]), _input("unsigned", ov.Type.u8, [4])
    total = _op.add(_op.convert(signed, "i32"), _op.convert(unsigned, "i32"))
    return ov.Model([_named("sum", total)], [signed, unsigned], "bytewise")


def picky() -> "ov.Model":
    """``x`` FP32 [4], ``shape`` INT64 [2] -> ``y``: fails while it runs where ``shape`` does not hold four."""
    x, shape = _input("x", ov.Type.f32, [4]), _input("shape", ov.Type.i64, [2])
    return ov.Model([_named("y", _op.reshape(x, shape, False))], [x, shape], "picky")


def steps(loops: int = 1) -> "ov.Model":
    """``steps`` INT32 [] -> ``taken`` INT32 [], after that many steps of about 0.2 ms in each of ``loops``.

    OpenVINO looks whether a run was cancelled between two nodes, and a loop is one: the run of one loop can't be.
    """
    count = _input("steps", ov.Type.i32, [])
    value = _op.broadcast(_op.convert(count, "f32"), _op.constant(np.array([_STEP_SIZE, _STEP_SIZE])))
    for _ in range(loops):
        value = _after(count, value)
    # The answer has to depend on the work, or that would be optimised away.
    nothing = _op.convert(_op.multiply(_op.reduce_sum(value, [0, 1], False), np.float32(0)), "i32")
    return ov.Model([_named("taken", _op.add(count, nothing))], [count], "steps")


def _after(count: "ov.Node", start: "ov.Node") -> "ov.Output":
    """What becomes of ``start`` in a loop of ``count`` steps."""
    value = _op.parameter([_STEP_SIZE, _STEP_SIZE], ov.Type.f32)
    work = _op.tanh(_op.matmul(value, value, False, False))
    go_on = _op.constant(True)
    loop = _op.loop(count, _op.constant(True))
    loop.set_function(ov.Model([work, go_on], [value]))
    loop.set_special_body_ports([-1, 1])
    loop.set_merged_input(value, start if isinstance(start, ov.Output) else start.output(0), work.output(0))
    loop.get_iter_value(go_on.output(0), -1)
    return loop.get_iter_value(work.output(0), -1)


def _input(name: str, dtype: "ov.Type", shape: list[int]) -> "ov.Node":
    return _named(name, _op.parameter(shape, dtype))


def _named(name: str, node: "ov.Node") -> "ov.Node":
    node.output(0).set_names({name})
    return node
