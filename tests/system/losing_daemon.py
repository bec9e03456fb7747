"""Runs a daemon that has lost its device once a file exists, whatever it does; a process begun without it has not.

``python losing_daemon.py FILE PYTHON -m inferd ARGUMENT...``. Faults are put in at the engine's seam, and loading again
is given up sooner than it would be. No GPU or NPU was at hand to lose.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from inferd.cli.main import main
from inferd.engine.model import Engine, LoadedModel
from inferd.engine.pool import Pool
from inferd.engine.slot import RunFailed
from inferd.engine.source import ModelSource
from inferd.errors import LoadFailed
from inferd.health.reload_backoff import ReloadBackoff, ReloadBackoffRules
from inferd.health.restart_policy import RestartPolicy, RestartRules
from inferd.supervision import restart, version_reloads

LOST = "Exception from ocl_stream.cpp: clFlush, error code: -5 CL_OUT_OF_RESOURCES"


def losing(lost: Path) -> None:
    """Have this process lose its device once there is ``lost``."""
    start, load = Pool.start, Engine.load

    def start_or_fail(pool: Pool, *arguments: Any, **more: Any) -> int:
        if lost.exists():
            raise RunFailed(LOST)
        return start(pool, *arguments, **more)

    def load_or_fail(engine: Engine, source: ModelSource) -> LoadedModel:
        if lost.exists():
            raise LoadFailed(source.name, source.version, LOST)
        return load(engine, source)

    Pool.start, Engine.load = start_or_fail, load_or_fail  # type: ignore[method-assign]

    def impatient_backoff(rules: ReloadBackoffRules) -> ReloadBackoff:
        return ReloadBackoff(replace(rules, first=0.01, fast_tries=3, slow_interval=3600.0))

    def impatient_policy(rules: RestartRules, began: float) -> RestartPolicy:
        return RestartPolicy(replace(rules, min_uptime=0.0), began)

    version_reloads.ReloadBackoff = impatient_backoff  # type: ignore[misc,assignment]
    restart.RestartPolicy = impatient_policy  # type: ignore[misc,assignment]


if __name__ == "__main__":
    _, file, _, _, _, *arguments = sys.argv
    losing(Path(file))
    sys.exit(main(arguments))
