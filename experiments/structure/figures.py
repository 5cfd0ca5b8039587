"""Counts lines, functions, comments and import cycles in a tree's package `harness`, from its source."""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections import Counter
from pathlib import Path

import networkx

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
OPTUNA_OBJECTS = {"study", "trial", "storage", "backend", "sampler", "optuna", "_backend", "_storage"}


def describe(tree: Path) -> dict[str, str]:
    """Return the counts of a tree as text, by their titles."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted((tree / "harness").rglob("*.py"))}
    parsed = {path: ast.parse(text) for path, text in files.items()}
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for module in parsed.values()
        for node in ast.walk(module)
        if isinstance(node, FUNCTIONS) and node.end_lineno is not None
    )
    lines = sum(len(text.splitlines()) for text in files.values())
    comments = sum(_count_comments(text) for text in files.values())
    folders = Counter(str(path.parent.relative_to(tree)) for path in files)
    private = {path.name: count for path, module in parsed.items() if (count := _count_private(module))}
    return {
        "lines": f"{lines}",
        "files": f"{len(files)}",
        "most files in a folder": ", ".join(f"{name} {count}" for name, count in folders.most_common(3)),
        "files in harness/search": ", ".join(
            f"{name.removeprefix('harness/search').lstrip('/') or '.'} {count}"
            for name, count in sorted(folders.items())
            if name.startswith("harness/search")
        ),
        "functions per 100 lines": f"{100 * len(lengths) / lines:.1f}",
        "median function": f"{statistics.median(lengths):g} lines",
        "p90 function": f"{lengths[int(0.9 * len(lengths))]} lines",
        "comments per 100 lines": f"{100 * comments / lines:.1f}",
        "import circles": f"{_count_circles(parsed, tree)}",
        "private to Optuna": ", ".join(f"{name} {count}" for name, count in private.items()) or "none",
    }


def _count_comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def _count_private(module: ast.Module) -> int:
    """Count uses of Optuna's private attributes, and imports from its private modules, in a file.

    An attribute counts if it belongs to a name of `OPTUNA_OBJECTS` (`study._storage`). A file that does not
    import Optuna counts as 0.
    """
    imports = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom | ast.Import)]
    if not any("optuna" in ast.unparse(node) for node in imports):
        return 0
    found = 0
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            name = getattr(owner, "id", getattr(owner, "attr", ""))
            found += name in OPTUNA_OBJECTS
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"):
            found += any(part.startswith("_") for part in (node.module or "").split("."))
    return found


def _count_circles(parsed: dict[Path, ast.Module], tree: Path) -> int:
    """Count the groups of modules in import cycles; imports in functions and for types do not count."""
    names = {_module_name(path, tree): module for path, module in parsed.items()}
    graph = networkx.DiGraph()
    for name, module in names.items():
        for node in _statements_at_import(module.body):
            for target in _targets(node):
                if target in names and target != name:
                    graph.add_edge(name, target)
    return sum(len(group) > 1 for group in networkx.strongly_connected_components(graph))


def _module_name(path: Path, tree: Path) -> str:
    parts = path.relative_to(tree).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _statements_at_import(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements that run when a file is imported: not those in functions or for types alone."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, FUNCTIONS) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        found.append(node)
        found.extend(
            _statements_at_import([part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)])
        )
    return found


def _targets(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []
