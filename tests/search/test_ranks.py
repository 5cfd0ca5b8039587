"""Trials over two processes each: one row, one run and one point a metric and epoch, whatever happens."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from harness.config.compose import compose_sweep
from harness.config.schema import TrackingConfig
from harness.errors import ConfigError
from harness.search.executors.local import LocalExecutor
from harness.search.sweep import SweepResult, run_sweep
from harness.tracking.store import open_store
from tests.search.conftest import SmallSweep
from tests.search.helpers import ranks_training
from tests.training.together import is_running

ROOT = Path(__file__).resolve().parents[2]
METRICS = ("train/loss", "lr")  # of which the finished run has no summary
Statuses = Callable[[Path], dict[str, str]]

TOGETHER = (
    "sweep.devices_per_trial=2",
    "sweep.slots=1",
    "sweep.num_trials=2",
    "data.max_train_samples=75",
    "data.batch_size=32",
    "tracking.log_model=false",
)


def run(small: SmallSweep, *more: str) -> SweepResult:
    small.output = io.StringIO()
    plan = compose_sweep(small.overrides(*TOGETHER, *more), small.configs)
    executor = LocalExecutor(run_trial=ranks_training.run_trial)
    return run_sweep(plan, console=Console(file=small.output, width=200), executor=executor)


def points(runs: Path) -> Counter[tuple[str, str, int]]:
    """Return how often each run's metrics were recorded at each step."""
    client = open_store(TrackingConfig(dir=str(runs))).client
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    trials = [run for run in found if run.data.tags["harness.kind"] == "trial"]
    return Counter(
        (run.info.run_name, name, point.step)
        for run in trials
        for name in METRICS
        for point in client.get_metric_history(run.info.run_id, name)
    )


def expected_points(num_trials: int, epochs: int) -> Counter[tuple[str, str, int]]:
    return Counter(
        (f"trial-{number:04d}", name, epoch)
        for number in range(num_trials)
        for name in METRICS
        for epoch in range(epochs)
    )


@pytest.mark.slow
def test_a_sweep_of_trials_over_two_processes(small_sweep: SmallSweep, run_statuses: Statuses) -> None:
    result = run(small_sweep)
    assert [row.state for row in result.rows] == ["complete"] * 2, small_sweep.output.getvalue()
    assert set(run_statuses(small_sweep.runs).values()) == {"FINISHED"}
    assert sorted(run_statuses(small_sweep.runs)) == ["small", "trial-0000", "trial-0001"]
    assert points(small_sweep.runs) == expected_points(2, epochs=2)


def test_devices_are_set_for_the_sweep_not_for_its_runs(small_sweep: SmallSweep) -> None:
    with pytest.raises(ConfigError, match=r"in a sweep, set sweep.devices_per_trial"):
        compose_sweep(small_sweep.overrides("trainer.devices=2"), small_sweep.configs)
    plan = compose_sweep(small_sweep.overrides("sweep.devices_per_trial=2"), small_sweep.configs)
    assert plan.compose_trial({"optim.lr": 0.001}).trainer.devices == 2
    with pytest.raises(ConfigError, match=r"the space reaches a run that cannot be.*evenly by 3 devices"):
        run(small_sweep, "sweep.devices_per_trial=3")


@pytest.mark.slow
def test_a_killed_rank_costs_a_retry_and_nothing_else(
    small_sweep: SmallSweep, run_statuses: Statuses
) -> None:
    small_sweep.behave(die={"0": [1, 5]})
    result = run(small_sweep)
    assert [row.state for row in result.rows] == ["complete"] * 2, small_sweep.output.getvalue()
    assert [row.deaths for row in result.rows] == [1, 0]
    assert set(run_statuses(small_sweep.runs).values()) == {"FINISHED"}
    assert points(small_sweep.runs) == expected_points(2, epochs=2)


@pytest.mark.slow
def test_nobody_takes_a_trial_while_its_last_process_lives(small_sweep: SmallSweep) -> None:
    """Rank 0, which beats for the trial, is dead some seconds before what has started it has cleaned up."""
    small_sweep.behave(die={"0": [0, 5]})
    two_slots = ("sweep.slots=2", "sweep.threads_per_trial=1", "sweep.num_trials=1")
    (row,) = run(small_sweep, *two_slots).rows
    assert (row.state, row.deaths, row.attempt) == ("complete", 1, 2)
    assert points(small_sweep.runs) == expected_points(1, epochs=2)


@pytest.mark.slow
def test_a_bug_in_one_rank_is_the_trials_failure(small_sweep: SmallSweep, run_statuses: Statuses) -> None:
    small_sweep.behave(fail={"0": [1, 5]})
    result = run(small_sweep)
    assert [row.state for row in result.rows] == ["failed", "complete"], small_sweep.output.getvalue()
    assert result.rows[0].reason == "ZeroDivisionError: a bug in one rank"
    assert run_statuses(small_sweep.runs)["trial-0000"] == "FAILED"


@pytest.mark.slow
def test_what_all_ranks_raise_is_told_once(small_sweep: SmallSweep) -> None:
    result = run(small_sweep, "optim=sgd", "optim.lr=1e30", "+sweep.space={seed:{type:int,low:0,high:9}}")
    assert [row.state for row in result.rows] == ["infeasible"] * 2, small_sweep.output.getvalue()
    assert [row.deaths for row in result.rows] == [0, 0]


@pytest.mark.slow
def test_rank_zeros_pruner_ends_both(small_sweep: SmallSweep, run_statuses: Statuses) -> None:
    small_sweep.behave(scores={"0": 0.9, "1": 0.9, "2": 0.1})
    result = run(
        small_sweep, "sweep.pruner.kind=median", "+sweep.pruner.startup_trials=2", "sweep.num_trials=3"
    )
    assert [row.state for row in result.rows] == ["complete", "complete", "pruned"], (
        small_sweep.output.getvalue()
    )
    assert result.rows[2].epochs_done == 1
    assert run_statuses(small_sweep.runs)["trial-0002"] == "FINISHED"


# ── as a command ──────────────────────────────────────────────────────────────────────────────────


def start(small: SmallSweep, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.search.helpers.ranks_training", str(small.configs)]
    return subprocess.Popen(
        [*command, *small.overrides(*TOGETHER, *more)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_ranks(small: SmallSweep, number: int, process: subprocess.Popen[str]) -> list[int]:
    """Wait until both ranks of a trial wait for the end; return their process ids."""
    files = [small.trial_folder(number) / f"rank-{rank}.waits" for rank in range(2)]
    until = time.monotonic() + 300
    while not files[0].is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    return [int((small.trial_folder(number) / f"rank-{rank}.pid").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ctrl-c", "killed coordinator"])
def test_a_stopped_sweep_goes_on_where_it_was(
    small_sweep: SmallSweep, run_statuses: Statuses, how: str
) -> None:
    small_sweep.behave(wait={"1": [0, 5]})
    process = start(small_sweep)
    pids = wait_for_ranks(small_sweep, 1, process)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    else:
        process.kill()
    output = process.communicate(timeout=300)[0]
    until = time.monotonic() + 300
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until, "a rank outlived its sweep"
        time.sleep(0.1)

    assert process.returncode == (130 if how == "ctrl-c" else -signal.SIGKILL), output
    assert [row.state for row in small_sweep.rows()] == ["complete", "running"]
    assert run_statuses(small_sweep.runs)["trial-0001"] == "KILLED"
    result = run(small_sweep)
    assert [row.state for row in result.rows] == ["complete"] * 2
    assert [row.deaths for row in result.rows] == [0, 0]
    assert points(small_sweep.runs) == expected_points(2, epochs=2)
