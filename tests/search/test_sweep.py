"""A sweep over its whole life: run, repeated, extended, changed, failing, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.compose import compose_sweep
from harness.config.schema import TrackingConfig
from harness.errors import ConfigError, SweepError
from harness.search.database.locks import LostLockError
from harness.search.report.parent_run import SweepRecord
from harness.search.study import keys
from harness.search.study.locate import locate_sweep, open_study
from harness.search.sweep import _sweep_record
from harness.tracking import names
from harness.tracking.choice import newest_sweep, read_sweep
from harness.tracking.readings import count_readings
from harness.tracking.store import open_store
from tests.helpers.recording_tracker import RecordingTracker
from tests.search.conftest import SmallSweep
from tests.search.helpers.calls import check_runs
from tests.search.test_progress import row
from tests.tracking.conftest import end_of_process

ROOT = Path(__file__).resolve().parents[2]
Statuses = Callable[[Path], dict[str, str]]


def test_runs_its_budget_and_shows_the_best(new_sweep: SmallSweep, run_statuses: Statuses) -> None:
    small_sweep, result = new_sweep, new_sweep.run()

    rates = {row.number: row.params["optim.lr"] for row in small_sweep.rows()}
    assert [row.state for row in result.rows] == ["complete"] * 3
    assert result.best is not None
    assert result.best.number == max(rates, key=lambda number: rates[number])  # as the fake scores
    assert result.best.score == pytest.approx((0.5 + 10 * max(rates.values())) * 0.95)  # its best epoch's
    assert result.best.best_epoch == 1
    assert set(run_statuses(small_sweep.runs).values()) == {"FINISHED"}
    assert len(run_statuses(small_sweep.runs)) == 4
    assert "make export" in small_sweep.output.getvalue()


def test_a_complete_sweep_does_nothing_and_a_larger_budget_goes_on(small_sweep: SmallSweep) -> None:
    first = small_sweep.run()
    before = [small_sweep.account(number) for number in range(3)]
    repeated = small_sweep.run()
    extended = small_sweep.run("sweep.num_trials=5")

    assert repeated.rows == first.rows
    assert [small_sweep.account(number) for number in range(3)] == before
    assert len(extended.rows) == 5
    assert extended.parent_run_id == first.parent_run_id


@pytest.mark.slow
def test_the_same_seed_suggests_the_same_trials(small_sweep: SmallSweep) -> None:
    runs = {}
    for name in ("a", "b"):
        small_sweep.name = name
        result = small_sweep.run("sweep.sampler.startup_trials=1")
        runs[name] = [row.params for row in result.rows]

    assert runs["a"] == runs["b"]
    assert len({row["optim.lr"] for row in runs["a"]}) == 3


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("optim.weight_decay=0.3", "optim.weight_decay: 0.05 → 0.3"),
        ("sweep.metric=val/loss sweep.direction=minimize", "sweep.direction: maximize → minimize"),
        ("data.split_seed=7", "data digest"),
    ],
)
def test_a_namesake_that_asks_something_else_is_refused(
    small_sweep: SmallSweep, change: str, shown: str
) -> None:
    small_sweep.run("sweep.num_trials=1")
    with pytest.raises(SweepError, match="asks something else") as caught:
        small_sweep.run("sweep.num_trials=2", *change.split())

    assert shown in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(small_sweep.rows()) == 1


def test_an_impossible_space_is_refused_before_anything_is_made(new_sweep: SmallSweep) -> None:
    with pytest.raises(ConfigError, match=r"the space reaches a run that cannot be.*momentum"):
        new_sweep.run("+sweep.space={optim.momentumm:{type:float,low:0.1,high:0.5}}")

    assert not new_sweep.runs.exists()


def test_a_trial_whose_process_dies_is_started_again_then_given_up(
    small_sweep: SmallSweep, run_statuses: Statuses
) -> None:
    small_sweep.behave(die={"0": 1, "1": 99})
    result = small_sweep.run("sweep.max_retries=1")

    assert [row.state for row in result.rows] == ["complete", "failed", "complete"]
    assert sum(line.startswith("start") for line in small_sweep.account(0)) == 2
    assert sum(line.startswith("start") for line in small_sweep.account(1)) == 2
    assert "signal 9" in (result.rows[1].reason or "")
    statuses = run_statuses(small_sweep.runs)
    assert statuses["trial-0000"] == "FINISHED"
    assert statuses["trial-0001"] == "FAILED"


def test_faults_of_trials_are_told_apart(small_sweep: SmallSweep) -> None:
    small_sweep.behave(fail=[0], diverge=[1], bug=[2])
    result = small_sweep.run("sweep.max_consecutive_failures=3", "sweep.num_trials=4")

    assert [row.state for row in result.rows] == ["failed", "infeasible", "failed", "complete"]
    reasons = [row.reason for row in result.rows]
    assert reasons[0] == "the disk is full of cats"
    assert reasons[1] == "the loss became NaN in epoch 1"
    assert reasons[2] == "ZeroDivisionError: a bug"
    assert "Traceback" in (small_sweep.trial_folder(2) / "trial.log").read_text()
    assert result.best is not None
    assert result.best.number == 3


def test_a_sweep_that_keeps_failing_stops_and_says_why(
    small_sweep: SmallSweep, run_statuses: Statuses
) -> None:
    small_sweep.behave(fail=list(range(10)))
    with pytest.raises(SweepError, match=r"2 trials failed in a row.*full of cats"):
        small_sweep.run("sweep.max_consecutive_failures=2", "sweep.num_trials=10")

    assert len(small_sweep.rows()) == 2
    assert run_statuses(small_sweep.runs)["small"] == "FAILED"


def test_a_trial_that_is_behind_is_pruned(small_sweep: SmallSweep) -> None:
    small_sweep.behave(scores={"0": 0.9, "1": 0.9, "2": 0.1})
    pruning = ["sweep.pruner.kind=median", "sweep.pruner.startup_trials=2"]
    result = small_sweep.run(*pruning)

    assert [row.state for row in result.rows] == ["complete", "complete", "pruned"]
    assert result.rows[2].epochs_done == 1
    assert result.rows[2].checkpoint is not None


def test_when_the_time_is_up_trials_stay_resumable(small_sweep: SmallSweep) -> None:
    small_sweep.behave(slow=[0])
    result = small_sweep.run("sweep.max_minutes=0.001", "sweep.num_trials=1")
    small_sweep.behave()
    continued = small_sweep.run("sweep.num_trials=1")

    assert result.outcome == "out_of_time"
    assert result.exit_code == 0
    assert "go on (harness sweep --config-dir" in small_sweep.output.getvalue()
    assert not any(row.has_ended for row in result.rows)
    assert [row.state for row in continued.rows] == ["complete"]


def test_the_best_checkpoint_is_evaluated_on_the_test_split_once(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, str]] = []

    def evaluate(
        path: Path, *, split: str, tracker: object, temperature: object, closely: bool
    ) -> dict[str, float]:
        asked.append((path, split))
        return {"test/accuracy": 0.75}

    monkeypatch.setattr("harness.training.evaluate.evaluate_checkpoint", evaluate)
    small_sweep.behave(scores={"0": 0.9, "1": 0.5, "2": 0.95})
    for num_trials in (1, 1, 2):
        result = small_sweep.run("sweep.evaluate_test=true", f"sweep.num_trials={num_trials}")
    assert asked == [(small_sweep.trial_folder(0) / "best.ckpt", "test")]
    small_sweep.run("sweep.evaluate_test=true")  # a better one comes

    assert [path.parent.name for path, _ in asked] == ["trial-0000", "trial-0002"]
    assert result.test_metrics == {"test/accuracy": 0.75}
    shown = small_sweep.output.getvalue()
    assert "(the test split was read once for this sweep)" in shown
    assert "(the test split was read 2 times for this sweep; this is reading 2)" in shown
    store = open_store(TrackingConfig(dir=str(small_sweep.runs)))
    parent, runs = result.parent_run_id, {row.number: row.run_id for row in small_sweep.rows()}
    assert parent is not None
    kept = [
        json.loads(v) for key, v in sorted(store.tags_of(parent).items()) if key.startswith(names.READING)
    ]
    assert [(entry["run"], entry["before"]) for entry in kept] == [(runs[0], 0), (runs[2], 1)]
    assert [count_readings(store.tags_of(str(runs[number]))) for number in range(3)] == [1, 0, 1]


def test_the_test_split_is_not_read_while_trials_are_still_to_come(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def evaluate(
        path: Path, *, split: str, tracker: object, temperature: object, closely: bool
    ) -> dict[str, float]:
        asked.append(path)
        return {"test/accuracy": 0.75}

    monkeypatch.setattr("harness.training.evaluate.evaluate_checkpoint", evaluate)
    limits = ("sweep.evaluate_test=true", "sweep.num_trials=2")
    small_sweep.run("sweep.num_trials=1")
    small_sweep.behave(slow=[1])
    stopped = small_sweep.run(*limits, "sweep.max_minutes=0.001")
    assert (stopped.outcome, stopped.rows[0].state) == ("out_of_time", "complete")
    assert asked == []

    small_sweep.behave()
    assert small_sweep.run(*limits).outcome == "complete"
    assert len(asked) == 1


def test_no_setting_of_an_earlier_best_trial_stays_on_the_sweeps_run(tmp_path: Path) -> None:
    plan, tracker = compose_sweep(["data=digits"]), RecordingTracker()
    kept = SweepRecord(plan, None, None, tracker, tmp_path, "harness sweep")  # type: ignore[arg-type]
    best = row(3, "complete", run_id="a", params={"finetune": "partial", "finetune.trainable_groups": 2})
    kept._record_best(best)
    assert tracker.tags["best.finetune.trainable_groups"] == "2"

    kept._record_best(row(5, "complete", run_id="b", params={"finetune": "linear_probe"}))
    assert {key: value for key, value in tracker.tags.items() if key.startswith("best.")} == {
        "best.finetune": "linear_probe"
    }
    kept._record_best(None)  # a new constraint has made all infeasible
    assert not [key for key in tracker.tags if key.startswith(("best.", "harness.best"))]


def test_a_coordinator_that_has_lost_its_place_leaves_the_sweeps_run_to_the_other(
    small_sweep: SmallSweep,
) -> None:
    """Its lock went with a database server that was restarted after it had read the trials."""
    plan = compose_sweep(small_sweep.overrides(), small_sweep.configs)
    home, store = locate_sweep(plan), open_store(plan.base.tracking)
    study = open_study(home)
    home, holder, ended = home.of(study), ["first"], [row(0, "complete", score=0.5)]

    def place_of(name: str) -> Callable[[], None]:
        def keep_place() -> None:
            if name not in holder:
                raise LostLockError("taken")

        return keep_place

    def coordinate_both() -> None:
        with _sweep_record(home, study, store, place_of("first")) as first:
            holder[:] = ["second"]
            with _sweep_record(home, study, store, place_of("second")) as second:
                with pytest.raises(LostLockError):
                    first.follow(ended)
                second.follow(ended)
            first.close("FINISHED")

    with pytest.raises(LostLockError):
        coordinate_both()
    check_runs(small_sweep, {})  # one run, which has ended, and no point twice


def test_ctrl_c_ends_a_command_that_has_lost_its_place(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        raise LostLockError("taken")

    monkeypatch.setattr("harness.search.coordinator.scheduler.Scheduler.run", run)
    result = small_sweep.run()
    assert (result.outcome, result.exit_code) == ("interrupted", 130)


@pytest.mark.slow
def test_a_trial_that_took_too_long_is_not_begun_again(
    small_sweep: SmallSweep, run_statuses: Statuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had decided so was killed before it could end the trial."""
    small_sweep.behave(slow=[0])
    with monkeypatch.context() as patch:
        patch.setattr(
            "harness.search.coordinator.stop.StopRequest.is_new",
            lambda _: "epoch 0" in small_sweep.account(0),
        )
        small_sweep.run("sweep.num_trials=1")
    row = small_sweep.rows()[0]
    small_sweep.storage().set_trial_user_attr(row.trial_id, keys.TO_FAIL, "longer than it may")
    small_sweep.behave()
    result = small_sweep.run("sweep.num_trials=2")

    assert [row.state for row in result.rows] == ["failed", "complete"]
    assert result.rows[0].reason == "longer than it may"
    assert run_statuses(small_sweep.runs)["trial-0000"] == "FAILED"


def test_ctrl_c_while_the_test_split_is_evaluated_leaves_and_is_recorded(
    small_sweep: SmallSweep, run_statuses: Statuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def evaluate(
        path: Path, *, split: str, tracker: object, temperature: object, closely: bool
    ) -> dict[str, float]:
        asked.append(path)
        if len(asked) == 1:
            signal.raise_signal(signal.SIGINT)
        return {"test/accuracy": 0.75}

    monkeypatch.setattr("harness.training.evaluate.evaluate_checkpoint", evaluate)
    limits = ("sweep.evaluate_test=true", "sweep.num_trials=1")
    interrupted = small_sweep.run(*limits)
    assert (interrupted.outcome, interrupted.exit_code) == ("interrupted", 130)
    assert interrupted.test_metrics is None
    assert run_statuses(small_sweep.runs)["small"] == "KILLED"
    assert small_sweep.run(*limits).test_metrics == {"test/accuracy": 0.75}
    assert run_statuses(small_sweep.runs)["small"] == "FINISHED"


@pytest.mark.slow
def test_a_sweep_that_is_stopped_from_elsewhere_says_so_everywhere(
    small_sweep: SmallSweep, run_statuses: Statuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sweep.behave(slow=[1])
    has_begun = lambda request: "epoch 0" in small_sweep.account(1)  # noqa: E731
    monkeypatch.setattr("harness.search.coordinator.stop.StopRequest.is_new", has_begun)
    stopped = small_sweep.run()

    assert (stopped.outcome, stopped.exit_code) == ("interrupted", 143)
    assert run_statuses(small_sweep.runs)["small"] == "KILLED"


# ── interruptions, of a real process ──────────────────────────────────────────────────────────────


Start = Callable[[SmallSweep], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a sweep in a process group of its own, of which nothing outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start_one(sweep: SmallSweep) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "tests.search.helpers.coordinator",
            str(sweep.configs),
            *sweep.overrides(),
        ]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipe))
        return started[-1]

    yield start_one
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_epoch(sweep: SmallSweep, number: int, process: subprocess.Popen[str]) -> None:
    account, until = sweep.trial_folder(number) / "account.txt", time.monotonic() + 300
    while not (account.is_file() and "epoch 0" in account.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def check_each_epoch_ran_once(sweep: SmallSweep, num_trials: int) -> None:
    for number in range(num_trials):
        epochs = [line for line in sweep.account(number) if line.startswith("epoch")]
        assert epochs == ["epoch 0", "epoch 1"]


@pytest.mark.slow
def test_ctrl_c_leaves_a_sweep_that_the_same_command_ends(
    small_sweep: SmallSweep, run_statuses: Statuses, start: Start
) -> None:
    small_sweep.behave(slow=[1])
    process = start(small_sweep)
    wait_for_epoch(small_sweep, 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    output = process.communicate(timeout=300)[0]

    assert process.returncode == 130, output
    assert "1 of 3 trials have ended; trial 1 goes on after epoch 1" in output
    assert "go on (harness sweep" in output
    interrupted = run_statuses(small_sweep.runs)
    assert interrupted == {"small": "KILLED", "trial-0000": "FINISHED", "trial-0001": "KILLED"}
    run_id = small_sweep.rows()[1].run_id
    small_sweep.behave()
    result = small_sweep.run()
    assert [row.state for row in result.rows] == ["complete"] * 3
    assert result.rows[1].run_id == run_id
    assert len(run_statuses(small_sweep.runs)) == 4
    assert set(run_statuses(small_sweep.runs).values()) == {"FINISHED"}
    check_each_epoch_ran_once(small_sweep, 3)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(small_sweep: SmallSweep, start: Start) -> None:
    small_sweep.behave(slow=[0])
    process = start(small_sweep)
    wait_for_epoch(small_sweep, 0, process)
    while small_sweep.rows()[0].epochs_done == 0:  # or it would be stopped while it holds the database
        time.sleep(0.1)
    child = int(small_sweep.account(0)[0].split()[1])
    os.kill(child, signal.SIGSTOP)  # it cannot hear the first request
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]

    assert process.returncode == 130, output
    assert small_sweep.rows()[0].state == "running"


@pytest.mark.slow
def test_a_sweep_whose_runs_were_deleted_in_mlflow_goes_on(small_sweep: SmallSweep) -> None:
    """Its parent, its trials, or all: they are restored, and nobody waits for a store that has answered."""
    small_sweep.behave(patience_s=0.0)  # nobody who waits would get far
    first = small_sweep.run("sweep.num_trials=1")
    assert first.parent_run_id is not None
    client = open_store(TrackingConfig(dir=str(small_sweep.runs))).client
    for run_id in (first.parent_run_id, str(first.rows[0].run_id)):
        client.delete_run(run_id)
    again = small_sweep.run("sweep.num_trials=2")
    assert [row.state for row in again.rows] == ["complete"] * 2
    assert again.parent_run_id == first.parent_run_id
    assert client.get_run(first.parent_run_id).info.lifecycle_stage == "active"


def test_a_sweep_that_was_moved_with_its_folder_goes_on_there(small_sweep: SmallSweep) -> None:
    small_sweep.run("sweep.num_trials=1")
    old, new = small_sweep.runs, small_sweep.runs.with_name("renamed")
    old.rename(new)
    end_of_process()
    moved = replace(small_sweep, runs=new)
    result = moved.run("sweep.num_trials=2")
    assert [row.state for row in result.rows] == ["complete"] * 2
    assert all(row.checkpoint is not None and row.checkpoint.is_relative_to(new) for row in result.rows)
    assert not old.exists()


def test_a_later_sweep_of_a_process_records_where_that_process_is_by_then(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sweep.run("sweep.num_trials=1")  # the fork server runs from here on, in this folder
    there = small_sweep.elsewhere("there")
    monkeypatch.chdir(there.runs.parent)
    there.run("tracking.dir=there", "sweep.num_trials=1")

    parent = newest_sweep(TrackingConfig(dir=str(there.runs)))
    assert parent is not None
    assert [run.trial for run in read_sweep(TrackingConfig(dir=str(there.runs)), parent).trials] == [0]
