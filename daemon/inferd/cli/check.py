"""``inferd check``: says what a daemon with these settings would serve, and what is wrong."""

from collections.abc import Callable, Iterator
from typing import TextIO

from inferd.config.daemon import Settings
from inferd.errors import InferdError, one_line
from inferd.repository import ModelEntry, VersionFile, repository_of
from inferd.tensors import Signature, TensorSpec

Inspect = Callable[[ModelEntry, VersionFile], Signature]
"""Reads a version's file without compiling it; raises an InferdError where that fails."""


def check(settings: Settings, out: TextIO, inspect: Inspect | None = None) -> int:
    """Print one line a model, and with ``inspect`` below it each version's inputs, outputs and remarks.

    Returns 0 when every model is fine and 1 when any is broken; raises RepositoryError when
    the repository itself can't be read.
    """
    listing = repository_of(settings).scan()
    lines = [_broken(b.name, b.error) for b in listing.broken]
    broken = len(lines)
    for entry in listing.models:
        try:
            lines.append((entry.name, "ok      " + "\n".join(_report(entry, inspect))))
        except InferdError as error:
            lines.append(_broken(entry.name, error))
            broken += 1
    for _, line in sorted(lines):
        print(line, file=out)
    print(f"{len(lines)} model{'' if len(lines) == 1 else 's'}, {broken} broken", file=out)
    return 1 if broken else 0


def _broken(name: str, error: InferdError) -> tuple[str, str]:
    return name, f"broken  {name}: {one_line(str(error), 1000)}"


def _report(entry: ModelEntry, inspect: Inspect | None) -> Iterator[str]:
    numbers = ", ".join(str(v.version) for v in entry.versions)
    noun = "version" if len(entry.versions) == 1 else "versions"
    yield f"{entry.name}: {noun} {numbers} on {', '.join(entry.config.devices)}"
    if inspect is None:
        return
    for version in entry.versions:
        signature = inspect(entry, version)
        yield from _tensors(f"version {version.version} input", signature.inputs)
        yield from _tensors(f"version {version.version} output", signature.outputs)
        for remark in signature.remarks:
            yield f"        version {version.version} numbers: {one_line(remark, 1000)}"


def _tensors(role: str, specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    for spec in specs:
        yield f"        {role}: {one_line(spec.name)} {spec.dtype.wire} {spec.describe()}"
