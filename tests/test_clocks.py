"""Only dates, texts for people and gRPC's interfaces use the wall clock: every wait uses a clock that never jumps."""

import ast
from collections.abc import Iterator
from pathlib import Path

import inferd

PACKAGE = Path(inferd.__file__).parent

# Who asks what day and time it is, and for what.
MAY_ASK = {
    "cli.token": "until when a token holds is a date",
    "engine.cache": "the age of files is told by the clock that stamped them",
    "exposition.exporter": "until when a token holds is a date",
    "metrics.histogram": "exemplars carry a time stamp",
    "metrics.recorder": "exemplars carry a time stamp",
    "rpc.gate": "until when a token holds is a date",
    "tracing.spans": "spans carry time stamps",
    "transport.call": "gRPC tells a call's deadline as a time of day",
    "transport.event_loop": "gRPC's queue is waited on until a time of day, for a second at most",
    "transport.wake_call": "gRPC's queue is waited on until a time of day",
    "tuner.offline": "a profile says when it was made",
    "tuner.operator_commands": "a profile says when it was made",
    "tuner.tuner": "a profile says when it was made",
}
WALL = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "ctime"),
    ("time", "localtime"),
    ("time", "gmtime"),
    ("time", "strftime"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
    ("time", "CLOCK_REALTIME"),
}


def wall_clocks(path: Path) -> Iterator[str]:
    """What of ``path`` names the wall clock, called or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in WALL:
                yield f"{module}.{name}"
            case ast.Attribute(value=ast.Attribute(attr=module), attr=name) if (module, name) in WALL:
                yield f"{module}.{name}"
            case ast.ImportFrom(module="time", names=names):
                yield from (alias.name for alias in names if ("time", alias.name) in WALL)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_nothing_that_waits_asks_the_wall_clock() -> None:
    asks = {module_of(path): sorted(found) for path in PACKAGE.rglob("*.py") if (found := set(wall_clocks(path)))}
    assert {module: what for module, what in asks.items() if module not in MAY_ASK} == {}
    assert MAY_ASK.keys() - asks.keys() == set(), "these need it no more"
