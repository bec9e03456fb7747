"""The import rule of docs/architecture.md, read off the source: imports point down the rows."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "daemon" / "inferd"

# A module belongs to the longest entry that names it or a package above it.
ROWS = {
    "errors": 0,
    "fair_share": 0,
    "ranges": 0,
    "disclosure": 1,
    "tensors": 1,
    "trace_context": 1,
    "config": 2,
    "requests": 2,
    "content": 3,
    "cgroup": 3,
    "lifecycle": 3,
    "logs": 3,
    "scheduling": 3,
    "atomic_file": 3,
    "security": 3,
    "shared_memory": 4,
    "shared_memory.regions": 3,
    "metrics.figures": 3,
    "metrics.grace": 3,
    "metrics.rolling": 3,
    "bench": 3,
    # What decides in tuning knows as little of the world as scheduling does; the modules that act are below.
    "tuning": 3,
    # What is decided of workers knows the world as little.
    "workers.cpu_sets": 3,
    "workers.retired_counters": 3,
    "workers.lifecycle": 3,
    "workers.merge_text": 3,
    "workers.merge_snapshots": 4,
    "workers.worker_identity": 4,
    "workers": 8,
    "engine": 4,
    "metrics.histogram": 4,
    "metrics.families": 4,
    "metrics.instruments": 4,
    "metrics.recorder": 4,
    "metrics.statistics": 4,
    "dispatcher": 5,
    "repository": 5,
    "watch": 6,
    "catalog": 6,
    "spans": 7,
    "supervision": 7,
    "reload": 8,
    "supervision.health": 3,
    "supervision.inline_choice": 3,
    "supervision.reload_backoff": 3,
    "supervision.restart_policy": 3,
    "supervision.liveness": 3,
    "tuning.conditions": 7,
    "tuning.configure": 7,
    "tuning.load": 7,
    "tuning.offline": 7,
    "tuning.plan": 7,
    "tuning.probe": 7,
    "tuning.probe_child": 7,
    "tuning.probe_process": 7,
    "tuning.profile": 7,
    "tuning.record": 7,
    "tuning.rollout": 7,
    "tuning.session": 7,
    "tuning.tuner": 7,
    "demo": 8,
    "metrics": 8,
    "rpc": 8,
    "tracing": 8,
    "app": 9,
    "workers.daemon": 9,
    "bench.alarm": 9,
    "bench.client_process": 9,
    "bench.generator": 9,
    "bench.server_probe": 9,
    "bench.session": 9,
    "bench.shared_regions": 9,
    "cli": 10,
    "__main__": 11,
}
# Packages without code of their own, and what any row may use.
UNRANKED = {"", "bench", "metrics", "shared_memory", "tuning", "workers", "_pb"}

HOMES = {
    "openvino": {"engine"},
    "grpc": {"rpc"},
    "grpc_health": {"rpc"},
    "grpc_channelz": {"rpc"},
    "grpc_reflection": {"rpc"},
    "hdrh": {"bench"},
    "opentelemetry": {"spans"},
    "google": {"rpc", "_pb"},
    "prometheus_client": {"metrics"},
    # Profiles are files that people read and edit, so they are validated as settings are.
    "pydantic": {"config", "tuning"},
    "pydantic_core": {"config"},
    "pydantic_settings": {"config"},
    "asyncio": {
        "app",
        "bench",
        "catalog",
        "cli",
        "dispatcher",
        "reload",
        "rpc",
        "supervision",
        "tuning",
        "workers",
    },
    "uvloop": {"bench", "cli"},
}
# Packages whose deciding part stands on row 3.
DECIDING = {"bench", "metrics", "shared_memory", "supervision", "tuning", "workers"}
PURE = ("errors", "fair_share", "tensors", "trace_context", "requests", "lifecycle", "scheduling")
IMPURE_LIBRARIES = {"asyncio", "threading", "time", "os", "socket", "random", "structlog", "pathlib"}
SAYS_NOTHING = {"utils", "util", "helpers", "base", "manager", "common", "handler", "handlers", "misc"}


def modules() -> dict[str, Path]:
    """Dotted name below ``inferd`` -> file, generated modules left out."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if not name.startswith("_pb"):
            found[name] = path
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that ``path`` imports anywhere, ``from a import b`` counted as ``a.b`` and ``a``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return frozenset(names)


def own_imports(path: Path) -> Iterator[str]:
    """Modules of ours that ``path`` imports, as dotted names below ``inferd``."""
    known = modules()
    for name in imports(path):
        if name.startswith("inferd."):
            below = name.removeprefix("inferd.")
            if below in known:
                yield below


def row(module: str) -> int | None:
    """The row of ``module``, None where rows don't apply."""
    if module in UNRANKED or module.startswith("_pb"):
        return None
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (ranked := ROWS.get(".".join(parts[:length]))) is not None:
            return ranked
    pytest.fail(f"inferd.{module} stands on no row: add it to ROWS and to docs/architecture.md")


def package(module: str) -> str:
    return module.split(".")[0]


def test_imports_point_down_the_rows() -> None:
    wrong = []
    for module, path in modules().items():
        here = row(module)
        for imported in own_imports(path):
            there = row(imported)
            if here is None or there is None or there < here:
                continue
            if here == there and package(module) == package(imported):
                continue
            wrong.append(f"inferd.{module} (row {here}) imports inferd.{imported} (row {there})")
    assert wrong == []


def test_no_import_cycle_inside_the_package() -> None:
    graph = {module: set(own_imports(path)) - {module} for module, path in modules().items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for imported in graph[module]:
            visit(imported, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())
    assert done == set(graph)


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_foreign_library_has_one_home(library: str) -> None:
    users = {package(m) for m, path in modules().items() if any(i.split(".")[0] == library for i in imports(path))}
    assert users <= HOMES[library], f"{library} is imported outside of its home"
    assert users or library == "google", f"{library} is used by nobody any more"


def test_pure_cores_know_no_clock_no_loop_and_no_disk() -> None:
    wrong = [
        f"inferd.{module} imports {name}"
        for module, path in modules().items()
        if package(module) in PURE or (package(module) in DECIDING and row(module) == 3)
        for name in imports(path)
        if name.split(".")[0] in IMPURE_LIBRARIES
    ]
    assert wrong == []


def test_modules_are_named_after_the_domain_and_stay_small() -> None:
    vague = [module for module in modules() if module.split(".")[-1] in SAYS_NOTHING]
    large = [module for module, path in modules().items() if len(path.read_text().splitlines()) > 600]
    assert vague == []
    assert large == []
