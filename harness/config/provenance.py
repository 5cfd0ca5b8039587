"""The resolved configuration as YAML, with where each value came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from harness.credentials import shown

UNSAID = "default"  # no file sets it: the schema's own default


def annotate(resolved: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return YAML that loads as `resolved`, each leaf commented with the file or command line that set it."""
    lines = list(_lines(resolved, origins, prefix="", depth=0))
    width = max(len(text) for text, _ in lines)
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines)


def _lines(
    tree: Mapping[str, Any], origins: Mapping[str, str], prefix: str, depth: int
) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        indent = "  " * depth
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:", ""
            yield from _lines(value, origins, path, depth + 1)
        else:
            yield f"{indent}{key}: {_scalar(value)}", _origin(path, origins)


def _origin(path: str, origins: Mapping[str, str]) -> str:
    """Return the origin of a value, or of the mapping it was set with (`sweep.space.x={…}`)."""
    while path:
        if path in origins:
            return origins[path]
        path = path.rpartition(".")[0]
    return UNSAID


def _scalar(value: Any) -> str:
    value = shown(value) if isinstance(value, str) else value
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
