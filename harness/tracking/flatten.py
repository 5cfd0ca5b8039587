"""Turns a nested configuration into the flat parameters that MLflow records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_VALUE_LENGTH = 6000  # characters; MLflow refuses longer parameters


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return ``{"optim.lr": "0.001"}``, each value as it would be typed on the command line."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = _as_text(value)
    return flat


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…"
