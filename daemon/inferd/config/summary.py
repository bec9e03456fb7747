"""A model's configuration in words and with units, so that people can check that it says what they meant."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from inferd.config.allowed import Declaration
from inferd.config.model import ModelConfig
from inferd.errors import one_line


def summary(config: ModelConfig) -> Iterator[str]:
    """One line for the objective, and one for the other settings that were given."""
    objective = config.objective
    goal = f"goal {objective.goal}"
    if objective.latency_slo is None:
        yield f"no latency objective, {goal}"
    else:
        yield (
            f"latency objective {_milliseconds(objective.latency_slo)} for {objective.percentile:g} % of requests, "
            f"{objective.availability:g} % to be answered, {goal}"
        )
    if given := [setting for setting in _given(config, "") if not setting.startswith("objective.")]:
        yield "given: " + ", ".join(given)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def _given(table: BaseModel, before: str) -> Iterator[str]:
    for name, field in type(table).model_fields.items():
        if name in table.model_fields_set:
            yield from _shown(f"{before}{name}", getattr(table, name), Declaration.of_field(field))


def _shown(key: str, value: Any, declared: Declaration) -> Iterator[str]:
    match value:
        case BaseModel():
            yield from _given(value, f"{key}.")
        case dict():
            for name, one in value.items():
                yield from _shown(f"{key}.{one_line(str(name), 80)}", one, declared.values or declared)
        case tuple():
            yield f"{key} = [{', '.join(one_line(str(one), 80) for one in value)}]"
        case _:
            yield f"{key} = {one_line(declared.written(value), 80)}"
