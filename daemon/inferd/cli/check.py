"""``inferd check``: reports what a daemon with these settings would serve, and what is wrong."""

from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from inferd.config.daemon import Settings
from inferd.config.summary import summary
from inferd.errors import ConfigurationError, InferdError, one_line
from inferd.repository.find import ModelEntry, Repository, VersionFile
from inferd.tensors import Signature, TensorSpec

TryOut = Callable[[ModelEntry, VersionFile], Signature]
"""Loads a version as the daemon would, or at least reads it; raises an InferdError if that fails."""


def check(settings: Settings, out: TextIO, try_out: TryOut | None = None) -> int:
    """Print a block of lines for each model: its mistakes, one a line, or what was understood and, with ``try_out``,
    each version's inputs, outputs and remarks.

    Returns 0 when every model is fine and 1 when any is broken; raises RepositoryError when
    the repository itself can't be read.
    """
    listing = Repository.of(settings).scan()
    blocks = [(b.name, _broken(b.name, [b.error])) for b in listing.broken]
    broken = len(blocks)
    for entry in listing.models:
        told, errors = _report(entry, try_out)
        broken += bool(errors)
        blocks.append((entry.name, _broken(entry.name, errors) if errors else told))
    for _, lines in sorted(blocks):
        print("\n        ".join(lines), file=out)
    print(f"{len(blocks)} model{'' if len(blocks) == 1 else 's'}, {broken} broken", file=out)
    return 1 if broken else 0


def _broken(name: str, errors: Sequence[InferdError]) -> list[str]:
    mistakes = [one for error in errors for one in (error.every if isinstance(error, ConfigurationError) else [error])]
    first, *others = (one_line(str(mistake), 1000) for mistake in mistakes)
    return [f"broken  {name}: {first}", *others]


def _report(entry: ModelEntry, try_out: TryOut | None) -> tuple[list[str], list[InferdError]]:
    numbers = ", ".join(str(v.version) for v in entry.versions)
    noun = "version" if len(entry.versions) == 1 else "versions"
    lines = [f"ok      {entry.name}: {noun} {numbers} on {', '.join(entry.config.devices)}"]
    lines += summary(entry.config)
    errors: list[InferdError] = []
    if try_out is None:
        return lines, errors
    for version in entry.versions:
        try:
            signature = try_out(entry, version)
        except InferdError as error:
            errors.append(error)
        else:
            lines += _tensors(f"version {version.version} input", signature.inputs)
            lines += _tensors(f"version {version.version} output", signature.outputs)
            lines += [f"version {version.version} numbers: {one_line(remark, 1000)}" for remark in signature.remarks]
    return lines, errors


def _tensors(role: str, specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    for spec in specs:
        yield f"{role}: {one_line(spec.name)} {spec.dtype.wire} {spec.describe()}"
