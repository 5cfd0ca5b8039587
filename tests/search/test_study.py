"""What is read from the database, and what samplers and pruners are built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from harness.config.sampling import PrunerConfig, SamplerConfig
from harness.config.sweep import SweepConfig
from harness.errors import SweepError
from harness.search import storage
from harness.search import study as studies

SWEEP = SweepConfig.model_validate({"space": {"seed": {"type": "int", "low": 0, "high": 9}}})


@pytest.fixture
def study() -> optuna.Study:
    return studies.create_study(optuna.storages.InMemoryStorage(), "mine", SWEEP)


def add(study: optuna.Study, scores: list[float], state: TrialState | None, **known: Any) -> None:
    trial = study.ask()
    for step, score in enumerate(scores, start=1):
        trial.report(score, step)
    for key, value in known.items():
        trial.set_user_attr(key, value)
    if state is not None:
        study.tell(trial, max(scores) if state == TrialState.COMPLETE else None, state=state)


def test_rows_say_what_became_of_each_trial(study: optuna.Study) -> None:
    add(study, [0.1, 0.8, 0.5], TrialState.COMPLETE, best_epoch=1, max_epochs=3, seconds=4.0)
    add(study, [0.3, 0.2], TrialState.PRUNED)
    add(study, [], TrialState.PRUNED, infeasible="the loss became NaN")
    add(study, [], TrialState.FAIL, reason="no disk")
    add(study, [0.9], None)
    rows = studies.read_rows(study)

    assert [row.state for row in rows] == ["complete", "pruned", "diverged", "failed", "running"]
    assert [row.score for row in rows] == [0.8, 0.3, None, None, 0.9]
    assert [row.last_score for row in rows][:2] == [0.5, 0.2]
    assert [row.best_epoch for row in rows] == [1, 0, None, None, 0]
    assert [row.epochs_done for row in rows] == [3, 2, 0, 0, 1]
    assert rows[3].reason == "no disk"
    best = studies.best_row(rows, "maximize")
    assert best is not None
    assert best.number == 0  # the running trial's 0.9 is no result yet


def test_the_best_of_equals_is_the_first_and_of_losses_the_least(study: optuna.Study) -> None:
    for score in (0.4, 0.2, 0.4, 0.2):
        add(study, [score], TrialState.COMPLETE)
    rows = studies.read_rows(study)

    assert studies.best_row(rows, "maximize") == rows[0]
    assert studies.best_row(rows, "minimize") == rows[1]
    assert studies.best_row([], "minimize") is None


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_every_trial_draws_its_own_and_the_same_again(study: optuna.Study, kind: Any) -> None:
    def draw(seed: int, number: int) -> float:
        own = studies.create_study(optuna.storages.InMemoryStorage(), "own", SWEEP)
        own.sampler = studies.build_sampler(SamplerConfig(kind=kind, seed=seed), number)
        return own.ask().suggest_float("x", 0, 1)

    assert draw(0, 1) == draw(0, 1)
    assert len({draw(seed, number) for seed in range(3) for number in range(3)}) == 9


@pytest.mark.parametrize(("kind", "step"), [("median", 1), ("hyperband", 1)])
def test_a_trial_far_behind_is_pruned_after_its_first_epoch(kind: Any, step: int) -> None:
    study = studies.create_study(optuna.storages.InMemoryStorage(), "mine", SWEEP)
    study.pruner = studies.build_pruner(PrunerConfig(kind=kind, startup_trials=2), max_epochs=3)
    for score in (0.9, 0.8, 0.85, 0.9, 0.95, 0.7, 0.8, 0.9):
        add(study, [score] * 3, TrialState.COMPLETE)
    verdicts = []
    for score in (0.99, 0.01):
        trial = study.ask()
        trial.report(score, step)
        verdicts.append(trial.should_prune())
        study.tell(trial, state=TrialState.PRUNED)

    assert verdicts == [False, True]


def test_no_pruner_prunes_nothing() -> None:
    assert isinstance(studies.build_pruner(PrunerConfig(kind="none"), 3), optuna.pruners.NopPruner)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("not a database at all, " * 100)
    with pytest.raises(SweepError, match=r"optuna\.db cannot be opened"):
        storage.open_storage(storage.storage_url(str(tmp_path)))
