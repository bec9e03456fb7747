"""A new version gets a part of the requests first: a good one then has them all, a bad one is taken back."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import ov
from tests.engine import models
from tests.engine.models import op
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.wire import OK, connect, method, request

pytestmark = pytest.mark.system

PATIENCE = 60.0
SETTINGS = """
[versions]
policy = "all"
[warmup]
runs = 0
[rollout]
canary_share = 0.25
canary_duration = {}
"""
Inputs = Mapping[str, npt.NDArray[Any]]
SOUND: Inputs = {"x": np.ones(4, np.float32), "to": np.array([2, 4], np.int64)}
# Not among what is asked before a version takes over: that was sent before it came.
UNSOUND: Inputs = {**SOUND, "to": np.array([2, 5], np.int64)}


def forgiving(factor: float) -> ov.Model:
    """``factor`` times what it gets, also where :func:`models.broadcasting` raises."""
    x, to = models.parameter([4]), models.parameter([2], ov.Type.i64, "to")
    shape = op.concat([op.gather(to, op.constant([0]), op.constant(0)), op.constant([4])], 0)
    return models.model({"y": op.broadcast(op.multiply(x, op.constant(np.float32(factor))), shape)}, [x, to])


def put(repository: Path, name: str, version: int, network: ov.Model, seconds: float) -> None:
    models.save(network, repository / name / str(version))
    (repository / name / "model.toml").write_text(SETTINGS.format(seconds))


async def loaded(
    daemon: Daemon, name: str, inputs: Inputs
) -> tuple[StatusCode, str, Counter[tuple[str, str | StatusCode]]]:
    """Load ``name`` again: the code and message of the load, and what clients got meanwhile: by the version that they
    asked for, the version that answered or the status code.

    They send ``inputs`` once a new version gets some; one that is refused at once gets none.
    """
    seen: Counter[tuple[str, str | StatusCode]] = Counter()
    async with connect(daemon.grpc) as channel:
        infer = method(channel, "ModelInfer")
        assert (await infer(request(name, SOUND))).model_version == "1"
        loading = method(channel, "RepositoryModelLoad")(pb.RepositoryModelLoadRequest(model_name=name))

        def begun() -> bool:
            return loading.done() or any(event["model"] == name for event in daemon.events("canary started"))

        await asyncio.to_thread(until, begun, PATIENCE, daemon.log)

        async def ask(version: str) -> None:
            while not loading.done():
                call = infer(request(name, inputs, version=version))
                code = await call.code()
                seen[version, (await call).model_version if code is OK else code] += 1

        await asyncio.gather(*(ask(version) for version in ("", "", "", "1")))
        return await loading.code(), await loading.details(), seen


async def answers(daemon: Daemon, name: str) -> set[str]:
    """The versions that answer now."""
    async with connect(daemon.grpc) as channel:
        infer = method(channel, "ModelInfer")
        return {(await infer(request(name, UNSOUND))).model_version for _ in range(8)}


def test_versions_are_promoted_rolled_back_or_refused(tmp_path: Path, cache_dir: Path) -> None:
    root = tmp_path / "models"
    for name in ("good", "bad", "spoilt"):
        put(root, name, 1, forgiving(1), 1.0)
    with Daemon(root, "--cache-dir", str(cache_dir), "--repository-control") as daemon:
        put(root, "good", 2, forgiving(2), 1.0)
        code, _, seen = asyncio.run(loaded(daemon, "good", UNSOUND))
        assert code is OK
        assert {asked: {got for version, got in seen if version == asked} for asked in ("", "1")} == {
            "": {"1", "2"},
            "1": {"1"},
        }
        assert asyncio.run(answers(daemon, "good")) == {"2"}

        put(root, "bad", 2, models.broadcasting(), 3600.0)
        code, said, seen = asyncio.run(loaded(daemon, "bad", UNSOUND))
        assert code is StatusCode.FAILED_PRECONDITION
        assert "rollout of 'bad' rejected (failed: new version: " in said
        # One in four went to the new version, and each of them failed.
        assert seen["", StatusCode.INTERNAL] >= 1
        assert seen["", StatusCode.INTERNAL] <= 1 + (seen["", StatusCode.INTERNAL] + seen["", "1"]) / 4
        assert {got for _, got in seen} == {"1", StatusCode.INTERNAL}
        assert {got for version, got in seen if version == "1"} == {"1"}
        assert asyncio.run(answers(daemon, "bad")) == {"1"}
        assert daemon.events("canary rolled back")[0]["reason"] == "failed"

        put(root, "spoilt", 2, forgiving(float("nan")), 3600.0)
        code, said, seen = asyncio.run(loaded(daemon, "spoilt", SOUND))
        assert code is StatusCode.UNAVAILABLE
        assert "output 'y' has NaN or infinity" in said
        assert {got for _, got in seen} <= {"1"}
        assert asyncio.run(answers(daemon, "spoilt")) == {"1"}

        metrics = daemon.get("/metrics")[1]
        assert 'inferd_model_rollbacks_total{model="bad",reason="failed",version="2"} 1.0' in metrics
        assert 'inferd_model_loads_total{model="spoilt",result="failed"} 1.0' in metrics
        assert 'inferd_model_rollbacks_total{model="good"' not in metrics
