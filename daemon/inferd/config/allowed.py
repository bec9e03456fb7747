"""What a setting may be, in words derived from its declaration.

Error sentences, ``--help`` and the reference pages all use these words, so none can drift from what
is really checked.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from inferd.config import quantities


@dataclass(frozen=True, slots=True)
class Allowed:
    """Stands in ``Annotated`` next to a validator whose rule no type expresses.

    ``one`` describes a single value, ``many`` the items of a list, ``kind`` is the word for it in help.
    """

    one: str
    many: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Quantity:
    """Stands in ``Annotated`` next to the validator of a number that may have a unit; ``written`` adds the unit."""

    noun: str
    examples: str
    written: Callable[[Any], str]


def _with_unit(read: Callable[[str], float]) -> Callable[[Any], Any]:
    """A validator that reads text with a unit and leaves everything else, such as a bare number, to the next one."""

    def validator(value: Any) -> Any:
        try:
            return read(value) if isinstance(value, str) else value
        except ValueError:
            return value

    return validator


Duration = Annotated[
    float,
    BeforeValidator(_with_unit(quantities.seconds_of)),
    Quantity("duration", quantities.DURATION_EXAMPLE, quantities.duration),
]
"""Seconds; given as ``20ms`` or as a bare number of seconds."""

Size = Annotated[
    int,
    BeforeValidator(_with_unit(quantities.bytes_of)),
    Quantity("size", quantities.SIZE_EXAMPLE, quantities.size),
]
"""Bytes; given as ``64MiB`` or as a bare number of bytes."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A setting's type and its metadata, such as bounds."""

    annotation: Any
    metadata: tuple[Any, ...] = ()

    @classmethod
    def of(cls, annotation: Any, metadata: Iterable[Any] = ()) -> "Declaration":
        """``annotation`` without its Annotated and its "or None": neither describes a value."""
        if get_origin(annotation) is Annotated:
            inner, *further = get_args(annotation)
            return cls.of(inner, (*_flat(further), *metadata))
        if get_origin(annotation) in (Union, UnionType) and type(None) in get_args(annotation):
            return cls.of(next(a for a in get_args(annotation) if a is not type(None)), metadata)
        return cls(annotation, tuple(metadata))

    @classmethod
    def of_field(cls, field: FieldInfo) -> "Declaration":
        return cls.of(field.annotation, field.metadata)

    @property
    def table(self) -> type[BaseModel] | None:
        """The table's own declaration, if the setting is a table."""
        return self.annotation if isinstance(self.annotation, type) and issubclass(self.annotation, BaseModel) else None

    @property
    def values(self) -> "Declaration | None":
        """The declaration of the values, if the setting is a table with keys of the user's choice."""
        return Declaration.of(get_args(self.annotation)[1]) if get_origin(self.annotation) is dict else None

    @property
    def items(self) -> "Declaration | None":
        """The declaration of the items, if the setting is a list."""
        return Declaration.of(get_args(self.annotation)[0]) if get_origin(self.annotation) is tuple else None

    def one(self) -> str:
        """A description of a value, such as ``a whole number of 0..64``."""
        if marker := self._marker():
            return marker.one
        if quantity := self.quantity:
            return f"a {quantity.noun}{self._range()}, such as {quantity.examples}"
        if get_origin(self.annotation) is Literal:
            *others, last = map(repr, get_args(self.annotation))
            return f"{', '.join(others)} or {last}" if others else last
        if self.items:
            return ("a non-empty list of " if "min_length" in self._bounds() else "a list of ") + self.items.many()
        if self.values:
            return "a table of " + self.values.many()
        return {str: "a string", Path: "a path", bool: "true or false", int: "a whole number", float: "a number"}.get(
            self.annotation, "a table"
        ) + self._range()

    def many(self) -> str:
        """A description of the values in a list, such as ``whole numbers of 0..64``."""
        if marker := self._marker():
            return marker.many
        if quantity := self.quantity:
            return f"{quantity.noun}s{self._range()}"
        if self.items:
            return "lists of " + self.items.many()
        return {str: "strings", int: "whole numbers", float: "numbers"}.get(self.annotation, "tables") + self._range()

    def kind(self) -> str:
        """One word for the type, or its choices: ``DURATION``, ``INTEGER``, ``{on,off}``."""
        if (marker := self._marker()) and marker.kind:
            return marker.kind
        if quantity := self.quantity:
            return quantity.noun.upper()
        if self.choices:
            return f"{{{','.join(self.choices)}}}"
        return {Path: "PATH", bool: "BOOLEAN", int: "INTEGER", float: "NUMBER"}.get(self.annotation, "TEXT")

    @property
    def choices(self) -> tuple[str, ...]:
        """The words allowed; empty if the setting is not a choice of words."""
        return tuple(map(str, get_args(self.annotation))) if get_origin(self.annotation) is Literal else ()

    @property
    def quantity(self) -> Quantity | None:
        """How its numbers are written, if they have a unit."""
        return next((m for m in self.metadata if isinstance(m, Quantity)), None)

    def written(self, value: Any) -> str:
        """``value`` as written in a flag, a variable or TOML, without quotes."""
        if value is not None and (quantity := self.quantity):
            return quantity.written(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def at(self, path: Iterable[str | int]) -> "Declaration":
        """The declaration at ``path`` (keys and list indexes); the last known one if the path leads nowhere."""
        found = self
        for step in path:
            if found.table and (field := found.table.model_fields.get(str(step))):
                found = Declaration.of_field(field)
            elif further := found.values or found.items:
                found = further
        return found

    def _marker(self) -> Allowed | None:
        return next((m for m in self.metadata if isinstance(m, Allowed)), None)

    def _bounds(self) -> dict[str, Any]:
        return {
            b: getattr(m, b) for m in self.metadata for b in ("ge", "gt", "le", "lt", "min_length") if hasattr(m, b)
        }

    def _range(self) -> str:
        bounds = self._bounds()
        written = {bound: self.written(bounds[bound]) for bound in ("ge", "gt", "le", "lt") if bound in bounds}
        match written:
            case {"ge": low, "le": high}:
                return f" of {low}..{high}"
            case {"gt": low, "le": high}:
                return f" above {low} and up to {high}"
            case {"ge": low, "lt": high}:
                return f" of {low} or more and below {high}"
            case {"ge": low}:
                return f" of {low} or more"
            case {"gt": low}:
                return f" above {low}"
        return ""


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)
