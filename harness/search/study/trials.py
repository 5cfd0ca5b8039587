"""The Optuna study: the only truth about a sweep, and the plain rows that everything else reads from it.

A step of a trial is the number of epochs it has completed (1-based): a resource, as Hyperband counts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.config.sweep import SweepConfig
from harness.search.study import keys
from harness.search.study.retrying_storage import PatientStorage
from harness.search.suggest.constraints import broken_constraints
from harness.search.suggest.samplers import build_sampler
from harness.tracking.moved import found_path

State = Literal["waiting", "running", "complete", "pruned", "infeasible", "failed"]
ENDED: tuple[State, ...] = ("complete", "pruned", "infeasible", "failed")


@dataclass(frozen=True)
class TrialRow:
    """One logical trial, as plain values."""

    number: int
    trial_id: int  # Optuna's, over all studies
    state: State
    score: float | None  # of the best epoch so far
    last_score: float | None
    best_epoch: int | None  # 0-based
    epochs_done: int
    max_epochs: int | None
    params: dict[str, Any]
    seconds: float | None  # of training
    run_id: str | None
    checkpoint: Path | None
    reason: str | None
    deaths: int
    attempt: int = 0  # how often it was begun
    owner: str | None = None  # who works on it, see claims.Owner; None: nobody
    costs: Mapping[str, float] = field(default_factory=dict)  # by name, see harness.config.objectives.Cost
    seed: int | None = None  # that it trains with; None: not begun, or by a program that gave all the same

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


def storage_of(study: optuna.Study) -> PatientStorage:
    """Return the database beneath Optuna's cache."""
    backend = study._storage._backend  # type: ignore[attr-defined]
    assert isinstance(backend, PatientStorage)
    return backend


def find_study(storage: BaseStorage, name: str) -> optuna.Study | None:
    """Return the study for reading and for creating trials; None if there is no such sweep."""
    try:
        return optuna.load_study(
            study_name=name, storage=storage, sampler=RandomSampler(), pruner=NopPruner()
        )
    except KeyError:
        return None


def create_study(storage: BaseStorage, name: str, sweep: SweepConfig) -> optuna.Study:
    """Return a new study, or the one that is there, as :func:`find_study` would."""
    return optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,  # also where the database was away as we heard that it was made
        directions=[sweep.direction, *([second.direction] if (second := sweep.second_objective) else [])],
        sampler=RandomSampler(),
        pruner=NopPruner(),
    )


def load_study_for_trial(storage: BaseStorage, name: str, sweep: SweepConfig, number: int) -> optuna.Study:
    """Return the study as one trial's process uses it: with a sampler of its own."""
    study = TrialStudy(name, storage, sampler=RandomSampler(), pruner=NopPruner())
    study.sampler = build_sampler(sweep, study, number)
    return study


def known_trial(trial: optuna.Trial) -> FrozenTrial:
    """Return a trial as it was found, and let Optuna's cache know it, which is to be given its parameters.

    Reading all trials would do it too, and takes seconds where there are thousands; that is left to samplers
    and pruners that look at them.
    """
    study, known = trial.study, trial._cached_frozen_trial
    study._storage._add_trials_to_cache(study._study_id, [known])  # type: ignore[attr-defined]
    return known


class TrialStudy(optuna.Study):
    """A study whose direction can be asked for even if it has two: it is that of intermediate values.

    TPE asks for it as soon as there is a pruned trial, and would fail.
    """

    @property
    def direction(self) -> StudyDirection:
        return self.directions[0]


def read_rows(study: optuna.Study, runs: Path | None = None) -> list[TrialRow]:
    """Return every trial of the study by number.

    Args:
        runs: the folder of runs, where checkpoints are looked for should it have been moved.
    """
    maximize = study.directions[0] == StudyDirection.MAXIMIZE
    rows = [_row(trial, maximize) for trial in study.get_trials(deepcopy=False)]
    if runs is None:
        return rows
    return [
        replace(row, checkpoint=found_path(row.checkpoint, runs)) if row.checkpoint else row for row in rows
    ]


def _row(trial: FrozenTrial, maximize: bool) -> TrialRow:
    known = trial.user_attrs
    scores = {step: value for step, value in trial.intermediate_values.items() if math.isfinite(value)}
    steps = sorted(scores, key=lambda step: scores[step], reverse=maximize)
    score = scores[steps[0]] if steps else None
    if trial.state == TrialState.COMPLETE:
        score = trial.values[0]
    best_epoch = known.get(keys.BEST_EPOCH, steps[0] - 1 if steps else None)
    if trial.state != TrialState.COMPLETE and best_epoch is not None:  # of the epoch that was kept
        score = scores.get(best_epoch + 1, score)
    return TrialRow(
        number=trial.number,
        trial_id=trial._trial_id,
        state=_state(trial),
        score=score,
        last_score=scores[max(scores)] if scores else None,
        best_epoch=best_epoch,
        epochs_done=trial.last_step or 0,
        max_epochs=known.get(keys.MAX_EPOCHS),
        params=dict(trial.params),
        seconds=known.get(keys.SECONDS),
        run_id=known.get(keys.RUN_ID),
        checkpoint=Path(known[keys.CHECKPOINT]) if known.get(keys.CHECKPOINT) else None,
        reason=known.get(keys.REASON) or known.get(keys.INFEASIBLE) or broken_constraints(trial),
        deaths=known.get(keys.DEATHS, 0),
        attempt=known.get(keys.ATTEMPT, 0),
        owner=known.get(keys.OWNER),
        costs=known.get(keys.COSTS, {}),
        seed=known.get(keys.SEED),
    )


def _state(trial: FrozenTrial) -> State:
    if trial.state.is_finished() and broken_constraints(trial) is not None:
        return "infeasible"
    match trial.state:
        case TrialState.COMPLETE:
            return "complete"
        case TrialState.PRUNED:
            return "infeasible" if keys.INFEASIBLE in trial.user_attrs else "pruned"
        case TrialState.FAIL:
            return "failed"
        case TrialState.RUNNING:
            return "running"
        case _:
            return "waiting"


def best_row(rows: list[TrialRow], direction: str) -> TrialRow | None:
    """Return the best complete trial, the earlier of equals; None if none is complete."""
    complete = [row for row in rows if row.state == "complete" and row.score is not None]
    sign = 1.0 if direction == "minimize" else -1.0
    return min(complete, key=lambda row: (sign * (row.score or 0.0), row.number), default=None)
