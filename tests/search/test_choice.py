"""The best trial as the runs tell of it is the leaderboard's, at any moment of a sweep's life."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.analysis.compare import compare_runs
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.search.report.parent_run import SweepRecord
from harness.search.study.trials import ranked
from harness.tracking.choice import choose, find_sweep, newest_sweep, read_sweep
from tests.search.conftest import SmallSweep
from tests.search.helpers.behaviour import account


def tracking_of(sweep: SmallSweep) -> TrackingConfig:
    return TrackingConfig(dir=str(sweep.runs))


def check_as_the_leaderboard(sweep: SmallSweep, direction: str) -> None:
    """Check that the runs tell the same ranking as the study does."""
    told = read_sweep(tracking_of(sweep), find_sweep(tracking_of(sweep), sweep.name))
    rows = [row for row in ranked(sweep.rows(), direction) if row.run_id is not None]
    assert [trial.trial for trial in told.ranked] == [row.number for row in rows]
    assert [trial.outcome for trial in told.ranked] == [row.state for row in rows]
    for trial, row in zip(told.ranked, rows, strict=True):
        if row.state == "complete":
            assert told.score(trial) == row.score


@pytest.mark.slow
def test_the_runs_rank_trials_as_the_leaderboard_does(small_sweep: SmallSweep) -> None:
    small_sweep.behave(
        scores={"0": 0.6, "1": 0.9, "2": 0.8, "3": 0.8}, latency_ms={"1": 5.0}, diverge=[4], fail=[5]
    )
    small_sweep.run("sweep.num_trials=6", "sweep.constraints=['latency_ms <= 2']")
    check_as_the_leaderboard(small_sweep, "maximize")
    choice = choose(tracking_of(small_sweep))
    assert choice.run.trial == 2
    assert choice.checkpoint == small_sweep.trial_folder(2) / "best.ckpt"


def test_a_loss_that_is_minimised_ranks_trials_in_the_runs_too(small_sweep: SmallSweep) -> None:
    small_sweep.behave(scores={"0": 0.6, "1": 0.9, "2": 0.8})
    small_sweep.run("sweep.metric=val/loss", "sweep.direction=minimize")
    check_as_the_leaderboard(small_sweep, "minimize")
    assert choose(tracking_of(small_sweep)).run.trial == 1


def test_a_sweep_enlarged_and_killed_after_a_better_trial_has_that_for_its_best(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sweep.behave(scores={"0": 0.6, "1": 0.9})
    small_sweep.run("sweep.num_trials=1")
    assert choose(tracking_of(small_sweep)).run.trial == 0
    monkeypatch.setattr(SweepRecord, "close", lambda *_: None)  # kill -9 comes before
    small_sweep.run("sweep.num_trials=2")
    choice = choose(tracking_of(small_sweep))
    assert choice.run.trial == 1
    assert choice.is_best_of_sweep
    assert choice.sweep is not None
    assert choice.sweep.num_judged == 2


@pytest.mark.slow
def test_a_constraint_that_is_added_later_rules_out_the_best_in_the_runs_too(small_sweep: SmallSweep) -> None:
    small_sweep.behave(scores={"0": 0.6, "1": 0.9, "2": 0.8}, latency_ms={"1": 5.0})
    small_sweep.run()
    assert choose(tracking_of(small_sweep)).run.trial == 1
    small_sweep.run("sweep.constraints=['latency_ms <= 2']", extend=True)
    check_as_the_leaderboard(small_sweep, "maximize")
    assert choose(tracking_of(small_sweep)).run.trial == 2


def test_a_sweep_whose_trials_are_all_infeasible_has_no_best_and_offers_none(small_sweep: SmallSweep) -> None:
    small_sweep.behave(diverge=[0], latency_ms={"1": 5.0})
    small_sweep.run("sweep.num_trials=2", "sweep.constraints=['latency_ms <= 2']")
    said = small_sweep.output.getvalue()
    assert "no best trial: 2 infeasible" in said
    assert "make export" not in said
    with pytest.raises(TrackingError, match=r"no best trial \(of 2 recorded trials, 2 infeasible\)"):
        choose(tracking_of(small_sweep))
    assert compare_runs(tracking_of(small_sweep)).to_text().count("infeasible") == 2


@pytest.mark.slow
def test_a_sweep_whose_database_is_gone_leaves_nothing_to_its_namesake(
    small_sweep: SmallSweep, empty_databases: list[Path]
) -> None:
    small_sweep.behave(scores={"0": 0.9}, fail=[1])
    small_sweep.run("sweep.num_trials=2")
    first = choose(tracking_of(small_sweep))
    before = small_sweep.account(0)
    shutil.copy(empty_databases[0], small_sweep.runs)
    small_sweep.behave(scores={"0": 0.6})
    small_sweep.run("sweep.num_trials=1")
    small_sweep.run("sweep.num_trials=2")

    own = [folder for folder in (small_sweep.runs / "sweeps").iterdir() if folder.name != small_sweep.name]
    assert len(own) == 1
    assert f"its folder is {own[0]}" in small_sweep.output.getvalue()
    assert [line for line in account(own[0] / "trial-0000") if line.startswith("epoch")] == [
        "epoch 0",
        "epoch 1",
    ]
    assert small_sweep.account(0) == before
    second = choose(tracking_of(small_sweep), "small")
    assert second.checkpoint.is_relative_to(own[0])
    assert second.run.run_id != first.run.run_id
    assert first.sweep is not None
    assert choose(tracking_of(small_sweep), first.sweep.parent.run_id).run.run_id == first.run.run_id
    assert first.checkpoint.is_file()


@pytest.mark.slow
def test_the_sweep_that_was_called_last_is_the_one_meant(small_sweep: SmallSweep) -> None:
    for name, num_trials in (("a", 1), ("b", 1), ("a", 2), ("b", 1)):
        small_sweep.name = name
        small_sweep.run(f"sweep.num_trials={num_trials}")
        last = newest_sweep(tracking_of(small_sweep))
        assert last is not None
        assert last.sweep == name  # also where nothing was left to do, and the leaderboard was shown again
        assert choose(tracking_of(small_sweep)).run.sweep == name
