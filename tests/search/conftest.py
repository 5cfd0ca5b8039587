"""A small sweep in its own folder, run by fake training in real processes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from harness.config.compose import CONFIG_DIR, compose_sweep
from harness.config.schema import TrackingConfig
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.database.storage import open_storage, storage_url
from harness.search.executors.local import LocalExecutor
from harness.search.report.parent_run import SweepRecord
from harness.search.study.trials import TrialRow, find_study, read_rows
from harness.search.sweep import SweepResult, run_sweep
from harness.tracking.store import open_store
from tests.search.helpers import fake_training
from tests.search.helpers.behaviour import account

SMALL = """# @package _global_
defaults:
  - override /model: lenet
  - override /finetune: full
  - override /augment: none
  - _self_
data:
  batch_size: 64
trainer:
  max_epochs: 2
sweep:
  num_trials: 3
  slots: 1
  evaluate_test: false
  pruner: {kind: none}
  space:
    optim.lr: {type: float, low: 3.0e-4, high: 1.0e-2, log: true}
"""


@dataclass
class SmallSweep:
    """A sweep over the learning rate of a LeNet on digits."""

    runs: Path
    cache: Path
    configs: Path
    name: str = "small"
    database: str | None = None  # a server's address; None: a file beside the runs
    output: io.StringIO = field(default_factory=io.StringIO)

    def overrides(self, *more: str) -> list[str]:
        return [
            "sweep=small",
            "data=digits",
            f"data.cache_dir={self.cache}",
            f"tracking.dir={self.runs}",
            f"sweep.name={self.name}",
            *([] if self.database is None else [f"sweep.storage='{self.database}'"]),
            *more,
        ]

    def run(self, *more: str, extend: bool = False) -> SweepResult:
        console = Console(file=self.output, force_terminal=False, width=200)
        executor = LocalExecutor(run_trial=fake_training.run_trial, preload=fake_training.PRELOAD)
        plan = compose_sweep(self.overrides(*more), self.configs)
        return run_sweep(plan, console=console, executor=executor, extend=extend)

    def behave(self, **behaviour: Any) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)
        (self.runs / "behaviour.json").write_text(json.dumps(behaviour))

    def account(self, number: int) -> list[str]:
        return account(self.trial_folder(number))

    def trial_folder(self, number: int) -> Path:
        return self.runs / "sweeps" / self.name / f"trial-{number:04d}"

    def elsewhere(self, folder: str) -> SmallSweep:
        """Return the same sweep in a folder of its own, with the databases that lie here, still empty."""
        runs = self.runs.with_name(folder)
        runs.mkdir()
        for database in self.runs.glob("*.db"):
            shutil.copy(database, runs)
        return replace(self, runs=runs)

    def storage(self) -> RetryingStorage:
        return open_storage(storage_url(str(self.runs), self.database))

    def study(self) -> optuna.Study:
        found = find_study(self.storage(), self.name)
        assert found is not None
        return found

    def rows(self) -> list[TrialRow]:
        return read_rows(self.study())


@pytest.fixture
def new_sweep(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallSweep:
    """A sweep in a folder that does not exist yet."""
    configs = Path(shutil.copytree(CONFIG_DIR, tmp_path / "configs"))
    (configs / "sweep" / "small.yaml").write_text(SMALL)
    return SmallSweep(tmp_path / "runs", tmp_path_factory.getbasetemp() / "search-cache", configs)


@pytest.fixture
def small_sweep(new_sweep: SmallSweep, empty_databases: list[Path]) -> SmallSweep:
    """A sweep in a folder that holds the runs of no other."""
    new_sweep.runs.mkdir()
    for database in empty_databases:
        shutil.copy(database, new_sweep.runs)
    return new_sweep


@pytest.fixture
def run_statuses() -> Callable[[Path], dict[str, str]]:
    """Return every MLflow run's name and status."""

    def read(runs: Path) -> dict[str, str]:
        client = open_store(TrackingConfig(dir=str(runs))).client
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(experiments)
        return {run.info.run_name: run.info.status for run in found}

    return read


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each sweep of these tests the drawing of its page, a second a time; `test_report.py` draws it."""
    if request.module.__name__.rpartition(".")[2] != "test_report":
        monkeypatch.setattr(SweepRecord, "_report", lambda *given: None)
