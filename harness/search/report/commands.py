"""The shell commands that train a sweep's trials again, each alone and to the same score."""

from __future__ import annotations

import shlex

import optuna

from harness.config.as_command import TrialOverrides
from harness.config.compose import SweepPlan
from harness.config.overrides import path_of
from harness.search.study import keys
from harness.search.study.trials import TrialRow


class TrainCommands:
    """Makes the commands of one sweep's trials."""

    def __init__(self, plan: SweepPlan, study: optuna.Study) -> None:
        self.plan = plan
        self._study = study
        self._overrides = TrialOverrides(plan)
        self._threads = study.user_attrs.get(keys.SLOTS, {}).get("threads")

    def of(self, row: TrialRow | None) -> str | None:
        """Return the command of a trial; None if its configuration can no longer be composed."""
        if row is None or not row.params:
            return None
        overrides = self._overrides.of(row.params, row.seed, self._threads)
        if overrides is None:
            return None
        if row.replicate_of is not None:  # perhaps with validation images of its own
            trial = self._study.get_trials(deepcopy=False)[row.number]
            if (split_seed := trial.user_attrs.get(keys.SPLIT_SEED)) is not None:
                kept = [text for text in overrides if path_of(text) != "data.split_seed"]
                overrides = [*kept, f"data.split_seed={split_seed}"]
        return shlex.join(["harness", "train", *self.plan.config_dir_option, *overrides])
