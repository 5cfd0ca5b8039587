"""What is read from the database, and how it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from harness.config.sweep import SweepConfig
from harness.errors import SweepError
from harness.search.database import storage
from harness.search.study import trials as studies

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

    assert [row.state for row in rows] == ["complete", "pruned", "infeasible", "failed", "running"]
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


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("not a database at all, " * 100)
    with pytest.raises(SweepError, match=r"optuna\.db cannot be opened"):
        storage.open_storage(storage.storage_url(str(tmp_path)))
