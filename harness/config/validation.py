"""Validation with one-line errors that name the key, what was expected, and the nearest fix.

Call `validate` instead of pydantic's `model_validate` wherever a user's values are read. pydantic reports an
error for every alternative of a union; `validate` reports one line for the first wrong value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from omegaconf.errors import MissingMandatoryValue
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.config.base import tags_of
from harness.config.dotted_paths import models_in
from harness.errors import ConfigError, did_you_mean, one_line

Model = TypeVar("Model", bound=BaseModel)

EXPECTED = {  # by pydantic's error types
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "list_type": "a list, such as [a, b]",
    "tuple_type": "a list, such as [a, b]",
    "dict_type": "keys with values, such as {key: value}",
    "model_type": "keys with values, such as {key: value}",
    "model_attributes_type": "keys with values, such as {key: value}",
}


def validate(model: type[Model], values: Mapping[str, Any], prefix: str = "") -> Model:
    """Return the validated model.

    Raises:
        ConfigError: one line for the first fault, with the number of others.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults: dict[str, list[ErrorDetails]] = {}
        for fault in error.errors():  # several for one value are of the alternatives of a union
            faults.setdefault(".".join(_as_written(fault["loc"], values, fault["type"])), []).append(fault)
        path, alternatives = next(iter(faults.items()))
        line = _describe(".".join(filter(None, (prefix, path))), alternatives, model)
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(one_line(line, width=2000) + more) from None


def hydras_line(error: Exception) -> str:
    """Return the first line of what Hydra or OmegaConf says, with the key that it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    keys = [line.removeprefix("full_key:").strip() for line in lines[1:] if line.startswith("full_key:")]
    where = f"{keys[0]}: " if keys and f"'{keys[0]}'" not in lines[0] else ""
    if isinstance(error, RecursionError):
        return "the configuration refers to itself, or is nested too deeply"
    if isinstance(error, MissingMandatoryValue) and keys:
        return f"{keys[0]} is not set: give it a value"
    if lines[0].startswith("Error merging override") and len(lines) > 1:
        override = lines[0].removeprefix("Error merging override").strip().lstrip("+")
        return one_line(f"{override}: {lines[1]}", width=400)
    return one_line(f"{where}{lines[0]}", width=400)


def _describe(path: str, faults: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    fault = faults[0]
    shown = one_line(_as_yaml(fault["input"]), width=60)
    match fault["type"]:
        case "extra_forbidden":
            wrong = str(fault["loc"][-1])
            line = f"unknown key {path!r}{did_you_mean(wrong, _field_names(model, fault['loc'][:-1]))}"
        case "missing":
            line = f"{path} is not set: give it a value"
        case "union_tag_invalid":
            tag, name = str(fault["ctx"]["tag"]), str(fault["ctx"]["discriminator"]).strip("'")
            line = f"{path}.{name}={tag}: unknown{did_you_mean(tag, _words(fault['ctx']['expected_tags']))}"
        case "union_tag_not_found":
            line = _without_tag(path, fault)
        case "value_error":
            message = fault["msg"].removeprefix("Value error, ")
            line = f"{path}: {message}" if path else message
        case "literal_error" if len(faults) == 1:
            line = f"{path}={shown}: unknown{did_you_mean(shown, _words(fault['ctx']['expected']))}"
        case _:
            line = f"{path}={shown}: {_expectation(faults)}"
    return line


def _expectation(faults: Sequence[ErrorDetails]) -> str:
    expected = [_expected(one) for one in faults]
    if None not in expected:
        kinds = " or ".join(dict.fromkeys(kind for kind in expected if kind))
        return f"expected {kinds}{_fix(faults[0]['input'], kinds)}"
    message = next(one["msg"] for one in faults if _expected(one) is None)
    return message[0].lower() + message[1:]


def _expected(fault: ErrorDetails) -> str | None:
    if fault["type"] == "literal_error":
        return str(fault["ctx"]["expected"])
    return EXPECTED.get(fault["type"])


def _fix(value: Any, kinds: str) -> str:
    """Return how to write the value validly; empty if that is not known."""
    if (
        isinstance(value, str)
        and "number" in kinds
        and re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", value, re.I)
    ):
        return f": write it without quotes, {value}"
    if isinstance(value, float) and value.is_integer() and "whole number" in kinds:
        return f": write {int(value)}"
    if isinstance(value, bool | int | float) and kinds == "text":
        return f": put it in quotes, {str(value)!r}"
    return ""


def _without_tag(path: str, fault: ErrorDetails) -> str:
    name = str(fault["ctx"]["discriminator"]).strip("'")
    value = fault["input"]
    if name != "type" or not isinstance(value, Mapping):
        return f"{path} has no {name}: choose one with {path.rpartition('.')[2]}=FILE"
    if any(isinstance(below, Mapping) for key, below in value.items() if key != "when"):
        inner = next(key for key, below in value.items() if isinstance(below, Mapping))
        return f"{path} is no dimension: write the path as one key, {path.rpartition('.')[2]}.{inner}: {{…}}"
    ends = [value.get("low"), value.get("high")]
    kind = "choice" if "values" in value else "int" if all(type(end) is int for end in ends) else "float"
    return f"{path} has no type: add type: {kind} (there are float, int and choice)"


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(quoted: str) -> list[str]:
    return [word.strip(" '") for word in quoted.replace(" or ", ", ").split(",")]


def _as_written(location: tuple[int | str, ...], values: Any, kind: str) -> list[str]:
    """Return the location of a fault as the user wrote it: without the tags that pydantic adds for unions."""
    names = []
    for position, step in enumerate(location):
        is_last = position == len(location) - 1
        if _has(values, step):
            values = values[step]
        elif not (is_last and kind == "missing"):
            continue
        names.append(str(step))
    return names


def _has(values: Any, step: int | str) -> bool:
    if isinstance(values, list):
        return step in range(len(values))
    return isinstance(values, Mapping) and step in values


def _field_names(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Return the keys that are valid at a location."""
    here: Any = model
    for step in location:
        models = models_in(here)
        fields = {name: field for m in models for name, field in m.model_fields.items()}
        if tagged := [m for m in models if step in tags_of(m)]:
            here = tagged[0]
        elif step in fields:
            here = fields[str(step)].annotation
    return {name for m in models_in(here) for name in m.model_fields}
