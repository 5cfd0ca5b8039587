"""Builds the pruner, records a trial's score after each epoch, and asks whether to prune the trial.

`trial/attempt.py` calls this after every epoch. Optuna refuses to report or prune if a study has two
objectives. The scores after each epoch are of the first objective only, so pruners are given a view of the
database in which every study has only that one (`database/first_objective.py`).
"""

from __future__ import annotations

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    SuccessiveHalvingPruner,
)

from harness.config.sampling import PrunerConfig
from harness.search.database.first_objective import FirstObjectiveStorage
from harness.search.database.optuna_private import storage_beneath


def build_pruner(config: PrunerConfig, max_epochs: int) -> BasePruner:
    """Return the pruner.

    Hyperband is given the number of epochs. Otherwise it would take that number from the first complete
    trials, and prune nothing until a trial is complete.
    """
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
    """Record a trial's score after an epoch; Optuna's `Trial.report` refuses studies of two objectives."""
    storage_beneath(study).set_trial_intermediate_value(trial_id, epochs_done, score)


def should_prune(study: optuna.Study, trial_id: int, pruner: BasePruner) -> bool:
    """Return whether the trial is so far behind that it should end."""
    if isinstance(pruner, NopPruner):
        return False  # saves reading the trial
    storage = FirstObjectiveStorage(storage_beneath(study))
    view = optuna.Study(study.study_name, storage, pruner=pruner)
    return pruner.prune(view, storage.get_trial(trial_id))
