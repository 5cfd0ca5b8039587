"""Keys that only some arms of a sweep have, such as `optim.momentum` where the space searches sgd and adamw.

An arm is one choice of config files (with the rules that then hold). Such a key, given on the command line,
is set in the arms whose section has it and left out of the others. `compose.py` calls this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.config import yaml_files
from harness.config.dotted_paths import kinds_with
from harness.config.overrides import parse_overrides, path_of, values_of
from harness.config.schema import RunConfig
from harness.config.sweep import SweepConfig
from harness.errors import ConfigError


def arm_values(sweep: SweepConfig, overrides: Sequence[str], config_dir: Path) -> dict[str, Any]:
    """Return the command line's values for keys of searched groups, by dotted path, if some arm has them.

    Raises:
        ConfigError: `group.kind` was given although the space searches that group.
    """
    held: dict[str, Any] = {}
    rules = [text for rule in sweep.rules for text in rule.overrides]
    chosen = {
        group: {*getattr(sweep.space.get(group), "values", ()), *_set_by(rules, group)}
        for group in yaml_files.groups(config_dir)
        if group in RunConfig.model_fields
    }
    for path, value in values_of(parse_overrides(overrides)).items():
        group, _, key = path.partition(".")
        if not key or not chosen.get(group):
            continue
        if key == "kind":
            raise ConfigError(f"{path}={value}: {group} is searched: to fix it, write {group}=FILE")
        kinds = kinds_with(path)
        options = {option: _kind_of(config_dir, group, option) for option in chosen[group]}
        if any(kind is None or kind in kinds for kind in options.values()):
            held[path] = value
    return held


def _set_by(overrides: Sequence[str], group: str) -> set[Any]:
    return {text.partition("=")[2].strip() for text in overrides if path_of(text) == group}


def _kind_of(config_dir: Path, group: str, option: Any) -> Any:
    file = config_dir / group / f"{option}.yaml"
    return yaml_files.read_yaml(file).get("kind") if file.is_file() else None


def without_foreign(values: dict[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm's values without the keys given for other arms; `values` itself is changed."""
    for path in held:
        group, _, key = path.partition(".")
        section = values.get(group)
        if isinstance(section, dict) and (kinds := kinds_with(path)) and section.get("kind") not in kinds:
            values[group] = {name: value for name, value in section.items() if name != key.split(".")[0]}
    return values
