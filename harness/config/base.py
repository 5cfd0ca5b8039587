"""The base class of every section of a configuration (and of the files that describe an exported model)."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    """A set of keys: immutable, without unknown keys, inf or NaN; types are strict (`true` is not 1)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*")
    @classmethod
    def _can_be_recorded(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{value!a} is no valid UTF-8: rename it, or link to it") from None
        return value


def tags_of(section: type[BaseModel]) -> tuple[Any, ...]:
    """Return the values of `kind` (of a dimension: `type`) that select this section; none of a base class."""
    field = section.model_fields.get("kind") or section.model_fields.get("type")
    return get_args(field.annotation) if field else ()
