"""Compiling in a process of its own: ``python -m inferd.engine.build`` fills the blob cache and ends.

Compiling beside traffic disturbs its tail latency (OpenVINO fact 12); a child with a lower
priority does not, and one that crashes, hangs or runs out of memory takes nobody with it.
The job comes as JSON on stdin; one line of JSON on stdout says how it went.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inferd.config.model import ModelConfig
from inferd.engine.cache import BlobCache
from inferd.engine.source import ModelSource
from inferd.errors import InferdError, one_line

_NICENESS = 10


@dataclass(frozen=True, slots=True)
class BuildResult:
    """How a build went: ``problem`` is a sentence, empty where ``ok``; ``seconds`` it took."""

    ok: bool
    problem: str
    seconds: float


def build_in_child(source: ModelSource, cache: BlobCache, cpu_threads: int, timeout: float) -> BuildResult:
    """Fill ``cache`` with what ``source`` compiles to, in a child process; blocks until it has ended.

    The next :meth:`inferd.engine.model.Engine.load` of it then imports. After ``timeout`` seconds
    the child is killed. Never raises for what the child does. Where it ended without an answer,
    the problem has the last line it wrote to stderr, which is for the operator's eyes.
    """
    job = json.dumps(_as_json(source, cache, cpu_threads))
    # Spawned: OpenVINO does not survive a fork (OpenVINO fact 16). -P: the folder we stand in holds no modules.
    command = [sys.executable, "-P", "-m", "inferd.engine.build"]
    begun = time.monotonic()
    try:
        ended = subprocess.run(  # noqa: S603 - our own interpreter and module
            command, input=job, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return BuildResult(False, f"not built within {timeout:g} s", time.monotonic() - begun)
    except OSError as error:
        return BuildResult(False, f"the build could not be started: {error.strerror}", time.monotonic() - begun)
    try:
        return BuildResult(**json.loads(ended.stdout))
    except (ValueError, TypeError):
        return BuildResult(False, _how_it_ended(ended), time.monotonic() - begun)


def _how_it_ended(ended: "subprocess.CompletedProcess[str]") -> str:
    code, lines = ended.returncode, ended.stderr.strip().splitlines()
    how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
    return f"the build ended {how}" + (f": {one_line(lines[-1])}" if lines else "")


def _as_json(source: ModelSource, cache: BlobCache, cpu_threads: int) -> dict[str, Any]:
    config = source.config.model_dump(mode="json", exclude={"shapes"})
    # As model.toml writes them; a dumped Dim is no dimension to its validator.
    config["shapes"] = {
        name: [d.lo if d.static else str(d) for d in dims] for name, dims in source.config.shapes.items()
    }
    return {
        "name": source.name,
        "version": source.version,
        "path": str(source.path),
        "files": [str(file) for file in source.files],
        "config": config,
        "cache_directory": str(cache.directory),
        "cache_max_bytes": cache.max_bytes,
        "cpu_threads": cpu_threads,
    }


# -- in the child --------------------------------------------------------------------


def main() -> int:
    """Do the job on stdin; 0 when everything is in the cache, 1 when the answer has a problem."""
    os.nice(_NICENESS)
    # Whatever a library prints must not get between the answer and who reads it.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    result = _build(json.load(sys.stdin))
    with answer:
        answer.write(json.dumps(asdict(result)) + "\n")
    return 0 if result.ok else 1


def _build(job: dict[str, Any]) -> BuildResult:
    # Not above: it reads OpenVINO in, which is work, too, and should be done with the lower priority.
    from inferd.engine.model import Engine

    source = ModelSource(
        job["name"],
        job["version"],
        Path(job["path"]),
        tuple(Path(file) for file in job["files"]),
        ModelConfig.model_validate(job["config"]),
    )
    cache = BlobCache(Path(job["cache_directory"]), job["cache_max_bytes"])
    begun, problem = time.monotonic(), ""
    try:
        Engine(job["cpu_threads"], cache).build(source)
    except InferdError as error:
        problem = str(error)
    return BuildResult(not problem, problem, time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
