"""Turns errors of the settings library into one clear sentence about file, key and allowed values."""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, time

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from inferd.config.allowed import Declaration
from inferd.errors import ConfigurationError, did_you_mean, listed, one_line


def problem_of(error: ValidationError, schema: type[BaseModel], source: Callable[[str], str]) -> ConfigurationError:
    """All problems as one error that names each key and what it allows; ``source`` says where a key was given, by
    its first part.

    A validator that raises ValueError with a text states the whole problem; without one,
    the declaration says what is allowed.
    """
    details = error.errors(include_url=False)
    # A list without its bad items may be too short for that reason alone.
    places = [detail["loc"] for detail in details]
    details = [
        detail
        for detail in details
        if not any(len(place) > len(detail["loc"]) and place[: len(detail["loc"])] == detail["loc"] for place in places)
    ]
    found = [_problem(source(str(detail["loc"][0]) if detail["loc"] else ""), detail, schema) for detail in details]
    return ConfigurationError.of(list({str(problem): problem for problem in found}.values()))


def _problem(source: str, detail: ErrorDetails, schema: type[BaseModel]) -> ConfigurationError:
    # The library marks a problem with a key, rather than with its value, by a last step "[key]".
    path = [step for step in detail["loc"] if step != "[key]"]
    key = _key(path)
    declared = Declaration(schema).at(path)
    match detail["type"]:
        case "extra_forbidden":
            table = Declaration(schema).at(path[:-1]).table or schema
            meant = _meant(str(path[-1]), table, schema)
            return ConfigurationError(source, key, f"unknown key{meant}", allowed=listed(table.model_fields, 100))
        case "missing":
            return ConfigurationError(source, key, "is required but not set", allowed=declared.one())
        case "value_error" if stated := str(detail["ctx"]["error"]):
            return ConfigurationError(source, key, one_line(stated))
        case "model_type" | "dict_type":
            allowed = f"a table ([{key}])"
        case _:
            allowed = declared.one()
    return ConfigurationError(source, key, f"got {_given(detail['input'])}", allowed=allowed)


def _meant(key: str, table: type[BaseModel], schema: type[BaseModel]) -> str:
    """The key of that name in another table, or one in ``table`` that looks like it."""
    elsewhere = [dotted for dotted in _dotted(schema) if dotted.rpartition(".")[2] == key]
    return f" (did you mean {elsewhere[0]}?)" if elsewhere else did_you_mean(key, table.model_fields)


def _dotted(schema: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield before + name
        if table := Declaration.of_field(field).table:
            yield from _dotted(table, f"{before}{name}.")


def _key(path: Iterable[str | int]) -> str:
    """``path`` as TOML writes it: list indexes in brackets, and quotes around keys that are not bare."""
    text = ""
    for step in path:
        match step:
            case int():
                text += f"[{step}]"
            case _ if re.fullmatch(r"[A-Za-z0-9_-]+", step):
                text += f".{step}"
            case _:
                text += f'."{one_line(step, 80)}"'
    return text.removeprefix(".")


def _given(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case date() | time():
            return str(value)
    return one_line(repr(value), 80)
