"""Writes a run's configuration as the overrides of `harness train`, so that one can repeat a trial by hand.

`harness.search.report` shows them for the best trial of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.config import yaml_files
from harness.config.compose import SweepPlan, compose_run, leaves_by_path
from harness.config.hydra_adapter import defaults_list
from harness.config.overrides import as_override_value
from harness.config.schema import RunConfig
from harness.config.space import Scalar
from harness.errors import ConfigError


def trial_as_run(
    plan: SweepPlan, chosen: Mapping[str, Scalar], seed: int | None, threads: int | None = None
) -> list[str] | None:
    """Return the overrides with which `harness train` repeats a trial of a sweep.

    They are composed again and compared with the trial's configuration before they are returned.

    Args:
        chosen: the trial's value for each dimension of the space that applies to it.
        seed: with which it trained; None: the plan's.
        threads: that a trial had, where the configuration leaves that to the machine. On a CPU, another
            number may change the last digits.

    Returns:
        The overrides; None if the trial's configuration can no longer be composed, or not from overrides.
    """
    try:
        config = plan.compose_trial(chosen)
        if seed is not None:
            config = config.model_copy(update={"seed": seed})
        if threads is not None and config.trainer.threads in (None, "auto"):
            trainer = config.trainer.model_copy(update={"threads": threads})
            config = config.model_copy(update={"trainer": trainer})
        lines = [*plan.overrides, *plan.arm_of(chosen)]
        files = defaults_list("sweep", lines, plan.config_dir).overrides.known_choices
        overrides = _overrides(config, files, plan)
        is_same = compose_run(overrides, plan.config_dir) == config
    except ConfigError:  # files that have changed since
        return None
    return overrides if is_same else None


def _overrides(config: RunConfig, files: Mapping[str, Any], plan: SweepPlan) -> list[str]:
    groups = yaml_files.groups(plan.config_dir)
    usual = defaults_list("run", [], plan.config_dir).overrides.known_choices
    chosen = [
        f"{group}={files[group]}"
        for group in groups
        if files.get(group) is not None
        and group in RunConfig.model_fields
        and files[group] != usual.get(group)
    ]
    given = leaves_by_path(compose_run(chosen, plan.config_dir).to_dict())
    wanted = leaves_by_path(config.to_dict())
    return chosen + [
        f"{path}={_as_text(value)}"
        for path, value in wanted.items()
        if path not in given or given[path] != value
    ]


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {_as_text(one)}' for key, one in value.items())}}}"
    return as_override_value(value)
