"""The harness replaces modules where one computes differently; it patches no method and mocks nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

SOURCES = sorted(Path(harness.__file__).parent.rglob("*.py"))


def _faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "forward" and not isinstance(node.ctx, ast.Load):
            yield f"line {node.lineno}: sets or deletes .forward"
        elif isinstance(node, ast.Call) and _sets_forward(node):
            yield f"line {node.lineno}: sets .forward by name"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if any(f"{module}.{alias.name}".strip(".").startswith("unittest") for alias in node.names):
                yield f"line {node.lineno}: imports unittest"


def _sets_forward(call: ast.Call) -> bool:
    is_setter = isinstance(call.func, ast.Name) and call.func.id in ("setattr", "delattr")
    return is_setter and any(isinstance(a, ast.Constant) and a.value == "forward" for a in call.args)


def test_nothing_sets_forward_and_nothing_mocks() -> None:
    assert len(SOURCES) > 100
    faults = {str(path): list(_faults(ast.parse(path.read_text(encoding="utf-8")))) for path in SOURCES}
    assert {path: found for path, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "module.forward = f",
        "del module.forward",
        "setattr(module, 'forward', f)",
        "a.b.forward: object = f",
        "import unittest.mock",
        "from unittest import mock",
        "from unittest.mock import patch",
    ],
)
def test_each_way_to_do_it_is_seen(source: str) -> None:
    assert list(_faults(ast.parse(source)))
