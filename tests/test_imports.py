"""The import rule of docs/architecture.md, read off the source: imports point down the rows."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "daemon" / "inferd"

# Package = layer: each package and each module at the top has one row, and its imports of ours point to lower ones.
ROWS = {
    "axes": 0,
    "errors": 0,
    "fair_share": 0,
    "lifecycle": 0,
    "merging": 0,
    "ranges": 0,
    "trace_context": 0,
    "atomic_file": 0,
    "patience": 0,
    "regular_file": 1,
    "exit_deadline": 1,
    "log_writer": 0,
    "cgroup": 0,
    "descriptors": 0,
    "tensors": 1,
    "disclosure": 1,
    "synthetic_tensors": 2,
    "config": 2,
    "content": 2,
    "requests": 2,
    "logs": 3,
    "bench": 3,
    "health": 3,
    "scheduling": 3,
    "tuning": 3,
    "repository": 3,
    "security": 3,
    "shared_memory": 3,
    "tracing": 3,
    "metrics": 4,
    "engine": 4,
    "transport": 4,
    "systemd": 4,
    "dispatcher": 5,
    "deployment": 6,
    "rollout": 7,
    "catalog": 8,
    "reload": 9,
    "supervision": 9,
    "tuner": 9,
    "exposition": 10,
    "workers": 11,
    "rpc": 12,
    "demo": 12,
    "app": 13,
    "load_generator": 13,
    "cli": 14,
    "__main__": 15,
}
# What any row may use, and what belongs to none.
UNRANKED = {"", "_pb"}

HOMES = {
    "openvino": {"engine"},
    "grpc": {"rpc", "transport"},
    "grpc_channelz": {"rpc"},
    "grpc_reflection": {"rpc"},
    "hdrh": {"bench"},
    "opentelemetry": {"tracing"},
    "google": {"rpc", "_pb"},
    "prometheus_client": {"exposition", "metrics"},
    # Profiles are files that people read and edit, so they are validated as settings are.
    "pydantic": {"config", "tuner"},
    "pydantic_core": {"config"},
    "shtab": {"cli"},
    "asyncio": {
        "app",
        "catalog",
        "cli",
        "deployment",
        "dispatcher",
        "load_generator",
        "reload",
        "rollout",
        "rpc",
        "supervision",
        "systemd",
        "transport",
        "tuner",
        "workers",
    },
    "uvloop": {"load_generator"},
}
# What decides knows no clock, no loop and no disk: whole packages, and modules that decide next to those that act.
PURE = {
    "axes",
    "bench",
    "errors",
    "fair_share",
    "health",
    "lifecycle",
    "merging",
    "metrics.error_budget",
    "metrics.grace",
    "metrics.merge_text",
    "metrics.retired_counters",
    "metrics.record_json",
    "metrics.rolling",
    "metrics.snapshot",
    "ranges",
    "requests",
    "rollout.canary_analysis",
    "rollout.comparison",
    "rollout.policy",
    "rollout.trial",
    "scheduling",
    "shared_memory.regions",
    "synthetic_tensors",
    "tensors",
    "trace_context",
    "tuning",
    "workers.cpu_sets",
    "workers.lifecycle",
}
IMPURE_LIBRARIES = {"asyncio", "threading", "time", "os", "socket", "random", "structlog", "pathlib"}
SAYS_NOTHING = {"utils", "util", "helpers", "base", "manager", "common", "handler", "handlers", "misc"}


@cache
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
    if package(module) in UNRANKED:
        return None
    if (ranked := ROWS.get(package(module))) is None:
        pytest.fail(f"inferd.{module} stands on no row: add it to ROWS and to docs/architecture.md")
    return ranked


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
    assert users or library == "google", f"{library} is no longer imported"


def test_pure_cores_know_no_clock_no_loop_and_no_disk() -> None:
    wrong = [
        f"inferd.{module} imports {name}"
        for module, path in modules().items()
        if module in PURE or package(module) in PURE
        for name in imports(path)
        if name.split(".")[0] in IMPURE_LIBRARIES
    ]
    assert wrong == []


def test_modules_are_named_after_the_domain_and_stay_small() -> None:
    vague = [module for module in modules() if module.split(".")[-1] in SAYS_NOTHING]
    large = [module for module, path in modules().items() if len(path.read_text().splitlines()) > 600]
    assert vague == []
    assert large == []
