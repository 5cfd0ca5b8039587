"""Applies the command line's overrides to a sweep's space; `compose_sweep` calls both functions.

edit_space      sweep.space.optim.lr.high=0.1   changes, adds or removes a dimension
without_fixed   optim.lr=0.001                  fixes a searched key, which then leaves the space
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from harness.config.overrides import SPACE
from harness.config.space import SearchSpace, as_yaml, check_conditions, holds
from harness.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)


def edit_space(section: Mapping[str, Any], parsed: Sequence[Override]) -> dict[str, Any]:
    """Apply overrides of `sweep.space` to a sweep's section, in their order.

    `sweep.space={…}` replaces the file's space, `sweep.space.optim.lr={…}` one dimension, and
    `sweep.space.optim.lr.high=…` one key of a dimension. Hydra cannot do this: it would merge the given space
    into the file's, and read the dots of `optim.lr` as nesting.

    Raises:
        ConfigError: a dimension that the space does not have.
    """
    edited = {**section}
    for override in parsed:
        path, value = override.key_or_group, copy.deepcopy(override.value())
        if path == SPACE:
            edited["space"] = {} if override.is_delete() else value
        elif path.startswith(f"{SPACE}."):
            space = edited.get("space")
            edited["space"] = dict(space) if isinstance(space, Mapping) else {}
            _edit_dimension(edited["space"], path.removeprefix(f"{SPACE}."), value, override.is_delete())
    return edited


def _edit_dimension(space: dict[str, Any], path: str, value: Any, is_delete: bool) -> None:
    known = [name for name in space if path == name or path.startswith(f"{name}.")]
    if not known:
        if isinstance(value, Mapping):
            space[path] = value
            return
        near = did_you_mean(path, space)
        raise ConfigError(
            f"{SPACE}.{path}: the space has no such dimension{near or f'; write {SPACE}.{path}={{type: …}}'}"
        )
    name = max(known, key=len)
    key = path.removeprefix(name).removeprefix(".")
    if is_delete:
        (_remove(space, [name]) if not key else _remove(space, [name, *_keys(key)]))
    elif not key:
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{SPACE}.{name}={value} is no dimension: to fix its value, write {name}={value}"
            )
        space[name] = value
    else:
        _put(space, [name, *_keys(key)], value)


def _keys(key: str) -> list[str]:
    """Split what follows a dimension's name: `when.optim.lr` means the key `optim.lr` of `when`."""
    first, _, rest = key.partition(".")
    return [first, rest] if rest else [first]


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        below = tree.get(key)
        tree[key] = dict(below) if isinstance(below, Mapping) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _remove(tree: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys[:-1]:
        below = tree.get(key)
        tree[key] = dict(below) if isinstance(below, Mapping) else {}
        tree = tree[key]
    tree.pop(keys[-1], None)


def without_fixed(asked: SearchSpace, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a space, its rules and its points without the keys that the user fixed.

    Conditions on a fixed key are decided now: a condition that holds is dropped; one that does not hold is
    dropped together with its dimension or rule.

    Raises:
        ValueError: a condition that can never hold, whatever is fixed.
    """
    check_conditions(asked.space, asked.rules, fixed)
    values = asked.model_dump(mode="json")
    space = {path: d for path, d in values.get("space", {}).items() if path not in fixed}
    points = [left for point in asked.enqueue if (left := _settle_point(point, fixed))]
    return {
        "space": {path: kept for path, d in space.items() if (kept := _settle(d, fixed)) is not None},
        "rules": [kept for rule in values.get("rules", []) if (kept := _settle(rule, fixed)) is not None],
        "enqueue": points,
    }


def _settle_point(point: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a point of `enqueue` without fixed keys; warn and return None if it can no longer be tried."""
    other = {path: value for path, value in point.items() if fixed.get(path, value) != value}
    left = {path: value for path, value in point.items() if path not in fixed}
    if not other and left:
        return left
    shown = ", ".join(f"{path}={as_yaml(value)}" for path, value in point.items())
    why = ", ".join(f"{path}={as_yaml(fixed[path])}" for path in other or point)
    log.warning("enqueue: no trial begins at %s, as %s is fixed", shown, why)
    return None


def _settle(conditional: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a dimension or rule without conditions on fixed keys; None if one of them does not hold."""
    when = conditional.get("when", {})
    certain = {path: values for path, values in when.items() if path in fixed}
    if not holds(certain, dict(fixed)):
        return None
    return {**conditional, "when": {path: v for path, v in when.items() if path not in fixed}}
