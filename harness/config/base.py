"""The base class of every section of a configuration (and of the files that describe an exported model)."""

from __future__ import annotations

from typing import Any

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
