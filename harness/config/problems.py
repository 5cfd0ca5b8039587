"""From pydantic's report of what is wrong to one line that names the fault and the nearest valid key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], values: Mapping[str, Any], prefix: str = "") -> Model:
    """Return the validated model.

    Raises:
        ConfigError: one line for the first fault, with the number of others.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        line = _describe(faults[0], model, values, prefix)
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(line + more) from None


def _describe(fault: ErrorDetails, model: type[BaseModel], values: Mapping[str, Any], prefix: str) -> str:
    path = ".".join(([prefix] if prefix else []) + _as_written(fault["loc"], values, fault["type"]))
    message = fault["msg"].removeprefix("Value error, ")
    match fault["type"]:
        case "extra_forbidden":
            wrong = str(fault["loc"][-1])
            return f"unknown key {path!r}{did_you_mean(wrong, _field_names(model, fault['loc'][:-1]))}"
        case "missing":
            return f"{path} is not set: give it a value"
        case "union_tag_invalid":
            tag = str(fault["ctx"]["tag"])
            return f"{path}.kind={tag}: unknown{did_you_mean(tag, _words(fault['ctx']['expected_tags']))}"
        case "literal_error":
            value = str(fault["input"])
            return f"{path}={value}: unknown{did_you_mean(value, _words(fault['ctx']['expected']))}"
        case "value_error":
            return f"{path}: {message}" if path else message
    return f"{path}={fault['input']}: {message[0].lower()}{message[1:]}"


def _words(quoted: str) -> list[str]:
    return [word.strip(" '") for word in quoted.replace(" or ", ", ").split(",")]


def _as_written(location: tuple[int | str, ...], values: Any, kind: str) -> list[str]:
    """Leave out of pydantic's location the tags of unions, which no user wrote."""
    names = []
    for position, step in enumerate(location):
        is_last = position == len(location) - 1
        if isinstance(values, Mapping) and step in values:
            values = values[step]
        elif not (is_last and kind == "missing") and not isinstance(step, int):
            continue
        names.append(str(step))
    return names


def _field_names(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Return the keys that are valid at a location."""
    here: Any = model
    for step in location:
        models = _models_in(here)
        fields = {name: field for m in models for name, field in m.model_fields.items()}
        if tagged := [m for m in models if step in _tags(m)]:
            here = tagged[0]
        elif step in fields:
            here = fields[str(step)].annotation
    return {name for m in _models_in(here) for name in m.model_fields}


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind") or model.model_fields.get("type")
    return get_args(field.annotation) if field else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
