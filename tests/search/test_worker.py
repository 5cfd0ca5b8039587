"""A sweep joined, looked at and stopped from outside."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.errors import SweepError, TrackingError
from harness.search.coordinator.stop import request_stop
from harness.search.database.storage import storage_url
from harness.search.executors.local import LocalExecutor
from harness.search.report.status import find_sweep, open_sweeps, read_status, status_line
from harness.search.worker import run_worker
from tests.search.conftest import SmallSweep
from tests.search.helpers import fake_training


def work(sweep: SmallSweep, *overrides: str, name: str | None = None) -> int:
    executor = LocalExecutor(run_trial=fake_training.run_trial, preload=fake_training.PRELOAD)
    url = storage_url(str(sweep.runs))
    return run_worker(name, url, overrides, config_dir=sweep.configs, executor=executor)


def test_a_worker_runs_what_is_left_and_the_sweep_then_has_nothing_to_do(small_sweep: SmallSweep) -> None:
    small_sweep.run("sweep.num_trials=1")
    assert work(small_sweep, "sweep.num_trials=3") == 0

    assert [row.state for row in small_sweep.rows()] == ["complete"] * 3
    accounts = [small_sweep.account(number) for number in range(3)]
    result = small_sweep.run("sweep.num_trials=3")
    assert [row.state for row in result.rows] == ["complete"] * 3
    assert [small_sweep.account(number) for number in range(3)] == accounts


@pytest.mark.slow
def test_a_worker_with_another_question_or_run_store_is_refused(
    small_sweep: SmallSweep, tmp_path: Path
) -> None:
    small_sweep.run("sweep.num_trials=1")
    with pytest.raises(SweepError, match=r"optim\.weight_decay"):
        work(small_sweep, "sweep.num_trials=2", "optim.weight_decay=0.3")
    with pytest.raises(TrackingError, match="does not hold the runs of sweep 'small'"):
        work(small_sweep, "sweep.num_trials=2", f"tracking.dir={tmp_path / 'elsewhere'}")
    with pytest.raises(SweepError, match="no sweep 'smal'; did you mean 'small'"):
        work(small_sweep, name="smal")
    assert len(small_sweep.rows()) == 1


@pytest.mark.slow
def test_status_says_how_far_a_sweep_is(small_sweep: SmallSweep, capsys: pytest.CaptureFixture[str]) -> None:
    small_sweep.behave(scores={"0": 0.9, "1": 0.6})
    small_sweep.run("sweep.num_trials=2")

    status = read_status(find_sweep(open_sweeps(storage_url(str(small_sweep.runs))), None))
    line = "sweep small: complete, 2 of 2 trials have ended, best val/accuracy 0.8550 (trial 0)"
    assert status_line(status) == line
    assert main(["sweep", "--status", "--mlruns", str(small_sweep.runs)]) == 0
    assert line in capsys.readouterr().out
    assert main(["sweep", "list", "--mlruns", str(small_sweep.runs)]) == 0
    assert "complete" in capsys.readouterr().out


def test_a_look_means_the_sweep_that_was_called_last(
    small_sweep: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second", "first"):
        replace(small_sweep, name=name).run("sweep.num_trials=1")

    assert main(["sweep", "--status", "--mlruns", str(small_sweep.runs)]) == 0
    assert "sweep first: complete" in capsys.readouterr().out

    by_make = ["sweep", "sweep=default", "--mlruns", str(small_sweep.runs), "--status"]
    assert main([*by_make, "second"]) == 0
    assert "sweep second: complete" in capsys.readouterr().out
    assert main([*by_make, "secnd"]) == 2
    assert capsys.readouterr().err == "error: no sweep 'secnd'; did you mean 'second'?\n"


def test_a_look_where_no_sweep_was_creates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "list", "--mlruns", str(tmp_path / "nothing")]) == 2
    assert "no sweep has been run yet" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_a_sweep_is_stopped_from_elsewhere_and_goes_on(small_sweep: SmallSweep) -> None:
    small_sweep.behave(slow=[0])

    def stop_when_running() -> None:
        while not any(row.epochs_done for row in small_sweep.rows()):
            time.sleep(0.2)
        request_stop(small_sweep.study())

    helper = threading.Thread(target=_once_begun, args=(small_sweep, stop_when_running), daemon=True)
    helper.start()
    assert small_sweep.run("sweep.num_trials=2").outcome == "interrupted"
    helper.join()

    small_sweep.behave()
    result = small_sweep.run("sweep.num_trials=2")
    assert [row.state for row in result.rows] == ["complete"] * 2
    assert [line for line in small_sweep.account(0) if line.startswith("epoch")] == ["epoch 0", "epoch 1"]


def _once_begun(sweep: SmallSweep, then: object) -> None:
    while not (sweep.runs / "sweeps" / sweep.name / "trial-0000" / "account.txt").exists():
        time.sleep(0.2)
    assert callable(then)
    then()
