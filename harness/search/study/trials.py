"""Finds, creates and loads a sweep's Optuna study, and reads its trials as plain rows.

A sweep continues from its study alone. Reports, the scheduler and the command line read rows, not Optuna's
objects. The step of a reported score is the number of epochs that the trial has completed (1-based), because
Hyperband takes the step for the resources used so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.analysis.seeds import winner
from harness.config.sweep import SweepConfig
from harness.search.database import optuna_private
from harness.search.database.optuna_private import database_beneath
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.study import keys
from harness.search.suggest.constraints import broken_constraints
from harness.search.suggest.samplers import build_sampler
from harness.tracking.moved import found_path

State = Literal["waiting", "running", "complete", "pruned", "infeasible", "failed"]
REMOVED_NOTE = "checkpoint-removed.txt"  # in a trial's folder, where its checkpoint was
ENDED: tuple[State, ...] = ("complete", "pruned", "infeasible", "failed")
RANKED_STATES = ("complete", "pruned", "running", "infeasible", "failed", "waiting")  # the best first


@dataclass(frozen=True)
class TrialRow:
    """One trial, all attempts at it included, as plain values."""

    number: int
    trial_id: int  # Optuna's id, unique over all studies
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
    owner: str | None = None  # a ProcessId as JSON; None: the trial is free
    costs: Mapping[str, float] = field(default_factory=dict)  # by name, see harness.config.objectives.Cost
    seed: int | None = None  # None: not begun, or begun by an earlier version, with the run's seed
    plain_accuracy: float | None = None  # without test-time augmentation; None: the score has none
    replicate_of: int | None = None  # the trial whose configuration it repeats; None: the search proposed it

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


def storage_of(study: optuna.Study) -> RetryingStorage:
    """Return the database beneath Optuna's cache."""
    backend = database_beneath(study)
    assert isinstance(backend, RetryingStorage)
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
    """Create the study and return it; if there is one already, return that one."""
    return optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,  # a retry may find the study that its first attempt has created
        directions=[sweep.direction, *([second.direction] if (second := sweep.second_objective) else [])],
        sampler=RandomSampler(),
        pruner=NopPruner(),
    )


def load_study_for_trial(storage: BaseStorage, name: str, sweep: SweepConfig, number: int) -> optuna.Study:
    """Return the study as one trial's process uses it, with that trial's own sampler."""
    study = TrialStudy(name, storage, sampler=RandomSampler(), pruner=NopPruner())
    study.sampler = build_sampler(sweep, study, number)
    return study


class TrialStudy(optuna.Study):
    """A study whose `direction` is that of its first objective, even if it has two.

    TPE reads `direction` as soon as there is a pruned trial, because it ranks pruned trials by their
    intermediate values, which are always of the first objective. Optuna's own property raises an error if
    there are two objectives.
    """

    @property
    def direction(self) -> StudyDirection:
        return self.directions[0]


def read_rows(study: optuna.Study, runs: Path | None = None) -> list[TrialRow]:
    """Return every trial of the study by number.

    Args:
        runs: the folder of runs; if it was moved, the checkpoints are looked for there.
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
    # NaN and infinity cannot be ranked.
    scores = {step: value for step, value in trial.intermediate_values.items() if math.isfinite(value)}
    steps = sorted(scores, key=lambda step: scores[step], reverse=maximize)
    score = scores[steps[0]] if steps else None
    if trial.state == TrialState.COMPLETE:
        score = trial.values[0]
    best_epoch = known.get(keys.BEST_EPOCH, steps[0] - 1 if steps else None)
    if trial.state != TrialState.COMPLETE and best_epoch is not None:  # the kept epoch's score
        score = scores.get(best_epoch + 1, score)
    return TrialRow(
        number=trial.number,
        trial_id=optuna_private.trial_id(trial),
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
        plain_accuracy=known.get(keys.PLAIN_ACCURACY),
        replicate_of=known.get(keys.REPLICATE_OF),
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


def searched(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the trials that the search proposed: all but the replicates."""
    return [row for row in rows if row.replicate_of is None]


def fresh_scores(rows: Sequence[TrialRow]) -> dict[int, dict[int, float]]:
    """Return the scores of complete replicates: number of the replicated trial -> seed -> score."""
    fresh: dict[int, dict[int, float]] = {}
    for row in rows:
        if row.replicate_of is not None and row.state == "complete" and row.score is not None:
            fresh.setdefault(row.replicate_of, {})[row.seed or 0] = row.score
    return fresh


def best_row(rows: Sequence[TrialRow], direction: str) -> TrialRow | None:
    """Return the best complete trial of the search, see `winner`; None if no trial is complete."""
    complete = {row.number: row for row in searched(rows) if row.state == "complete"}
    scores = {number: row.score for number, row in complete.items() if row.score is not None}
    fresh = {number: list(scores.values()) for number, scores in fresh_scores(rows).items()}
    best = winner(scores, fresh, minimizes=direction == "minimize")
    return None if best is None else complete[best]


def ranked(rows: Sequence[TrialRow], direction: str) -> list[TrialRow]:
    """Return the trials best first, the replicates last.

    Pruned trials saw fewer epochs, so they follow the complete ones. The best trial (`best_row`) comes first
    even if another one's single score is higher.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    best = best_row(rows, direction)

    def key(row: TrialRow) -> tuple[bool, bool, int, bool, float, int]:
        state = RANKED_STATES.index(row.state)
        is_replicate = row.replicate_of is not None
        return is_replicate, row is not best, state, row.score is None, sign * (row.score or 0.0), row.number

    return sorted(rows, key=key)


def was_removed(checkpoint: Path) -> bool:
    """Return whether a trial's checkpoint was removed to keep within `sweep.checkpoint_gb`."""
    return not checkpoint.is_file() and checkpoint.with_name(REMOVED_NOTE).is_file()
