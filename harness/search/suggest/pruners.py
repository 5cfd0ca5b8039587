"""Which trials are given up early: judged by the sweep's metric alone, a second objective or not.

Optuna knows neither reports nor pruning for several objectives. What a pruner reads are intermediate values,
so it is shown the database as one of a single objective.
"""

from __future__ import annotations

from typing import Any, cast

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    SuccessiveHalvingPruner,
)
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from harness.config.sampling import PrunerConfig


def build_pruner(config: PrunerConfig, max_epochs: int) -> BasePruner:
    """Return the pruner; Hyperband is told the epochs, as its own guess prunes nothing at first."""
    pruner = _build_kind(config, max_epochs)
    if config.patience_epochs is None:
        return pruner
    return PatientPruner(None if config.kind == "none" else pruner, config.patience_epochs)


def _build_kind(config: PrunerConfig, max_epochs: int) -> BasePruner:
    match config.kind:
        case "none":
            return NopPruner()
        case "median":
            return MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_epochs)
        case "successive_halving":
            return SuccessiveHalvingPruner(
                min_resource=config.min_epochs, reduction_factor=config.reduction_factor
            )
        case "hyperband":
            return HyperbandPruner(
                min_resource=config.min_epochs,
                max_resource=max(max_epochs, config.min_epochs),
                reduction_factor=config.reduction_factor,
            )


def report_score(study: optuna.Study, trial_id: int, epochs_done: int, score: float) -> None:
    """Tell the study a trial's score after an epoch."""
    study._storage.set_trial_intermediate_value(trial_id, epochs_done, score)


def should_prune(study: optuna.Study, trial_id: int, pruner: BasePruner) -> bool:
    """Return whether the trial is so far behind that it should end."""
    if isinstance(pruner, NopPruner):
        return False  # without reading the trial
    storage = cast(BaseStorage, _FirstObjective(study._storage))
    view = optuna.Study(study.study_name, storage, pruner=pruner)
    return pruner.prune(view, storage.get_trial(trial_id))


class _FirstObjective:
    """The database with every study's first objective only."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._storage.get_study_directions(study_id)[:1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
