"""Writes the configuration of a sweep's trial as overrides, with which `harness train` trains it again.

`harness.search.report.commands` makes shell commands of them, for the report and the pages in MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.config import yaml_files
from harness.config.compose import SweepPlan, compose_run, leaves_by_path
from harness.config.hydra_adapter import defaults_list
from harness.config.overrides import as_override_value
from harness.config.schema import RunConfig
from harness.config.space import Scalar
from harness.errors import ConfigError


@dataclass(frozen=True)
class TrialOverrides:
    """Writes the trials of one sweep as overrides; Hydra composes once for each arm."""

    plan: SweepPlan
    _files: dict[str, list[str]] = field(default_factory=dict)  # arm -> its files, as overrides
    _given: dict[str, dict[str, Any]] = field(default_factory=dict)  # arm -> what these files give, by path
    _is_right: dict[str, bool] = field(default_factory=dict)  # arm -> its overrides compose its configuration

    def of(
        self, chosen: Mapping[str, Scalar], seed: int | None, threads: int | None = None
    ) -> list[str] | None:
        """Return the overrides with which `harness train` repeats a trial.

        For the first trial of each arm they are composed again, and compared with the trial's configuration.

        Args:
            chosen: the trial's value for each dimension of the space that applies to it.
            seed: with which it trained; None: the plan's.
            threads: that a trial had, where the configuration leaves that to the machine. On a CPU, another
                number may change the last digits.

        Returns:
            The overrides; None if the trial's configuration can no longer be composed, or not from overrides.
        """
        try:
            config = self.plan.compose_trial(chosen)
            if seed is not None:
                config = config.model_copy(update={"seed": seed})
            if threads is not None and config.trainer.threads is None:
                trainer = config.trainer.model_copy(update={"threads": threads})
                config = config.model_copy(update={"trainer": trainer})
            overrides = self._overrides(config, chosen)
            arm = " ".join(self.plan.arm_of(chosen))
            if arm not in self._is_right:
                self._is_right[arm] = compose_run(overrides, self.plan.config_dir) == config
        except ConfigError:  # files that have changed since
            return None
        return overrides if self._is_right[arm] else None

    def _overrides(self, config: RunConfig, chosen: Mapping[str, Scalar]) -> list[str]:
        arm = " ".join(self.plan.arm_of(chosen))
        if arm not in self._files:
            self._files[arm] = self._files_of(chosen)
            run = compose_run(self._files[arm], self.plan.config_dir)
            self._given[arm] = leaves_by_path(run.to_dict())
        given, wanted = self._given[arm], leaves_by_path(config.to_dict())
        return self._files[arm] + [
            f"{path}={_as_text(value)}"
            for path, value in wanted.items()
            if path not in given or given[path] != value
        ]

    def _files_of(self, chosen: Mapping[str, Scalar]) -> list[str]:
        """Return the config files of a trial's arm that `harness train` does not take by itself."""
        folder = self.plan.config_dir
        lines = [*self.plan.overrides, *self.plan.arm_of(chosen)]
        files = defaults_list("sweep", lines, folder).overrides.known_choices
        usual = defaults_list("run", [], folder).overrides.known_choices
        return [
            f"{group}={files[group]}"
            for group in yaml_files.groups(folder)
            if group in RunConfig.model_fields and files.get(group) not in (None, usual.get(group))
        ]


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {_as_text(one)}' for key, one in value.items())}}}"
    return as_override_value(value)
