"""The daemon's settings, described in words for help and documentation."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from inferd.config.allowed import Declaration
from inferd.config.daemon import COMMON, Group, Settings


@dataclass(frozen=True, slots=True)
class Described:
    """A setting: its name, group, whether most people use it, whether it is a switch, the word for its type (or its
    choices), its default (empty if it is required) and its meaning."""

    name: str
    group: Group
    common: bool
    switch: bool
    kind: str
    default: str
    meaning: str


def described() -> Iterator[Described]:
    """All settings, by group."""
    for group, fields in grouped().items():
        for name, field in fields.items():
            common, switch = is_common(field), field.annotation is bool
            kind = Declaration.of_field(field).kind()
            yield Described(name, group, common, switch, kind, _default(field), field.description or "")


def grouped() -> dict[Group, dict[str, FieldInfo]]:
    """The declarations by group, in the order of groups and declarations."""
    fields: dict[Group, dict[str, FieldInfo]] = {group: {} for group in Group}
    for name, field in Settings.model_fields.items():
        fields[next(mark for mark in field.metadata if isinstance(mark, Group))][name] = field
    return fields


def is_common(field: FieldInfo) -> bool:
    """Whether most people use the setting."""
    return any(mark is COMMON for mark in field.metadata)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    if field.default_factory is not None:
        # The computed value differs by machine, so the function's docstring describes it.
        return (field.default_factory.__doc__ or "").rstrip(".").replace("`", "")
    return Declaration.of_field(field).written(field.default) or "none"
