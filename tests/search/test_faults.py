"""Faults of processes, each at the moment where it hurts most, and how the sweep ends all the same."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import SweepError
from harness.search.ownership.process_id import ProcessId
from harness.search.study import identity as code
from harness.search.study import keys
from harness.search.study.trials import storage_of
from tests.search.conftest import SMALL, SmallSweep
from tests.search.helpers.calls import (
    Call,
    calls_of,
    check_promises,
    is_alive,
    is_stopped,
    kill,
    pid_of,
    wait_for,
)
from tests.search.helpers.real_training import run_real_trial

MOMENTS = ("opened", "start", "epoch", "report", "checkpoint", "end")
SHORT_LEASE = "sweep.lease_seconds=2"
PATIENT = "sweep.max_retries=1000"  # where a short lease may be lost to a busy machine, it is no failure
EPOCHS = ["epoch 0", "epoch 1"]


def epochs(sweep: SmallSweep, number: int) -> list[str]:
    return [line for line in sweep.account(number) if line.startswith("epoch")]


def wait_for_epoch(sweep: SmallSweep, number: int, call: Call) -> None:
    wait_for(lambda: "epoch 0" in sweep.account(number), call)


def wait_until_stopped(sweep: SmallSweep, numbers: range, call: Call) -> list[int]:
    """Wait until trials have stopped themselves; return their processes."""
    wait_for(lambda: all(is_stopped(pid_of(sweep, number)) for number in numbers), call)
    return [pid_of(sweep, number) for number in numbers]


# ── trials ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_trial_killed_at_any_moment_goes_on_after_its_last_epoch(small_sweep: SmallSweep) -> None:
    num_trials = len(MOMENTS)
    small_sweep.behave(faults={str(number): (moment, 9) for number, moment in enumerate(MOMENTS)})
    with calls_of(small_sweep) as calls:
        calls.finish(f"sweep.num_trials={num_trials}", "sweep.slots=2", "sweep.max_retries=1")

    assert [row.deaths for row in small_sweep.rows()] == [1] * num_trials
    assert [epochs(small_sweep, number) for number in range(num_trials)] == [EPOCHS] * num_trials
    check_promises(small_sweep, num_trials)


@pytest.mark.slow
def test_a_stopped_trial_is_ended_and_started_again(small_sweep: SmallSweep) -> None:
    """By the coordinator that started it, and by the next one where that is gone."""
    small_sweep.behave(faults={str(number): ("epoch", signal.SIGSTOP) for number in (0, 1)})
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.num_trials=2", SHORT_LEASE, PATIENT)
        first = wait_until_stopped(small_sweep, range(1), call)
        second = wait_until_stopped(small_sweep, range(1, 2), call)
        call.kill()
        calls.finish("sweep.num_trials=2", SHORT_LEASE, PATIENT)

        assert not any(map(is_alive, first + second))
    assert epochs(small_sweep, 0) == epochs(small_sweep, 1) == EPOCHS
    check_promises(small_sweep, 2)


def everything_recorded(sweep: SmallSweep) -> dict[str, Any]:
    """Return all that a late writer could spoil."""
    with closing(sqlite3.connect(f"file:{sweep.runs}/mlflow.db?mode=ro", uri=True)) as database:
        tables = {
            name: set(database.execute(f"SELECT * FROM {name}"))
            for name in ("runs", "metrics", "tags", "params")
        }
    files = [path for path in sweep.trial_folder(0).parent.rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix not in (".log", ".partial")]
    return {**tables, **{str(path): path.read_bytes() for path in kept}, "rows": sweep.rows()}


@pytest.mark.slow
def test_a_late_writer_from_another_machine_writes_nothing(small_sweep: SmallSweep) -> None:
    """Nobody can end it there: that its attempt is not the newest must do."""
    moments = ("epoch", "checkpoint", "end")
    small_sweep.behave(faults={str(n): (moment, signal.SIGSTOP) for n, moment in enumerate(moments)})
    limits = ("sweep.num_trials=3", "sweep.slots=2", "sweep.lease_seconds=5", "trainer.max_epochs=3")
    late: list[int] = []
    with calls_of(small_sweep) as calls:
        for numbers in (range(2), range(2, 3)):
            call = calls.start(*limits)
            wait_for(lambda numbers=numbers: all(pid_of(small_sweep, n) for n in numbers), call)
            kill(call.process.pid, signal.SIGSTOP)  # or it would end the trials that it sees asleep
            late += wait_until_stopped(small_sweep, numbers, call)
            call.kill()
            move_to_another_machine(small_sweep)
        calls.finish(*limits)
        check_promises(small_sweep, 3)
        before = everything_recorded(small_sweep)
        assert all(map(is_stopped, late))

        for pid in late:
            kill(pid, signal.SIGCONT)
        wait_for(lambda: not any(map(is_alive, late)))
        assert everything_recorded(small_sweep) == before
    for number in range(3):
        assert "taken over by another process" in (small_sweep.trial_folder(number) / "trial.log").read_text()


def move_to_another_machine(sweep: SmallSweep) -> None:
    study = sweep.study()
    for trial in study.get_trials():
        if trial.user_attrs.get(keys.OWNER) is not None:
            owner = replace(ProcessId.from_json(trial.user_attrs[keys.OWNER]), host="elsewhere")
            storage_of(study).set_trial_user_attr(trial._trial_id, keys.OWNER, owner.to_json())


@pytest.mark.slow
def test_a_trial_that_takes_too_long_has_failed(small_sweep: SmallSweep) -> None:
    """One hears the request to stop, the other has to be killed."""
    small_sweep.behave(slow=[0], hang=[1])
    with calls_of(small_sweep) as calls:
        limits = ("sweep.trial_timeout_minutes=0.05", "sweep.grace_seconds=0.5", "sweep.slots=2")
        calls.finish("sweep.num_trials=2", *limits)
        failed = small_sweep.rows()
        calls.finish("sweep.num_trials=3")

    assert [row.state for row in failed] == ["failed", "failed"]
    assert {row.reason for row in failed} == {"longer than sweep.trial_timeout_minutes=0.05"}
    check_promises(small_sweep, 3, ("complete", "failed"))


@pytest.mark.slow
def test_a_rate_without_bounds_is_an_answer(small_sweep: SmallSweep) -> None:
    """The loss of real training becomes NaN; no epoch of that is anybody's best."""
    (small_sweep.configs / "sweep" / "small.yaml").write_text(
        SMALL.replace("low: 3.0e-4, high: 1.0e-2", "low: 9.0e+29, high: 1.0e+30")
    )
    with calls_of(small_sweep, run_real_trial) as calls:
        tiny = ("data.max_train_samples=200", "tracking.log_model=false", "trainer.max_epochs=1")
        calls.finish(*tiny, "sweep.num_trials=1", "sweep.max_consecutive_failures=1")

    (row,) = small_sweep.rows()
    assert row.state == "infeasible"
    assert row.score is None
    assert "NaN" in (row.reason or "")
    check_promises(small_sweep, 1, ("infeasible",))


# ── coordinators ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_killed_coordinator_takes_its_trials_along_and_loses_nothing(small_sweep: SmallSweep) -> None:
    small_sweep.behave(slow=[0])
    with calls_of(small_sweep) as calls:
        call = calls.start()
        wait_for_epoch(small_sweep, 0, call)
        call.kill()
        wait_for(lambda: not is_alive(pid_of(small_sweep, 0)))
        assert small_sweep.rows()[0].owner is None  # it has let go: nobody has to wait for its lease
        small_sweep.behave()
        calls.finish()

    assert epochs(small_sweep, 0) == EPOCHS
    check_promises(small_sweep, 3)


@pytest.mark.slow
def test_the_loss_of_the_machine_costs_an_epoch_at_most(small_sweep: SmallSweep) -> None:
    small_sweep.behave(slow=[0, 1])
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.slots=2")
        for number in (0, 1):
            wait_for_epoch(small_sweep, number, call)
        call.kill_all()
        small_sweep.behave()
        calls.finish("sweep.slots=2")

    assert epochs(small_sweep, 0) == epochs(small_sweep, 1) == EPOCHS
    check_promises(small_sweep, 3)


@pytest.mark.slow
def test_a_coordinator_killed_at_any_note_it_makes_leaves_a_sweep_that_goes_on(
    small_sweep: SmallSweep,
) -> None:
    """Between what it does and what the study knows of it, a run could be left open, or made twice."""
    notes = (keys.SWEEP_ID, keys.IDENTITY, keys.CODE, keys.PLAN, keys.PARENT_RUN_ID, keys.CLOSED)
    with calls_of(small_sweep) as calls:
        for note in notes:
            small_sweep.behave(die_noting=note)
            call = calls.start("sweep.num_trials=1")
            assert call.wait() == -signal.SIGKILL, call.output
        small_sweep.behave()
        calls.finish("sweep.num_trials=1")

    assert epochs(small_sweep, 0) == EPOCHS
    check_promises(small_sweep, 1)


@pytest.mark.slow
def test_sigterm_leaves_in_time_and_resumably(small_sweep: SmallSweep) -> None:
    """Also where a trial does not listen: that one is killed after the grace."""
    small_sweep.behave(slow=[0], hang=[1])
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.slots=2", "sweep.grace_seconds=0.5")
        for number in (0, 1):
            wait_for_epoch(small_sweep, number, call)
        kill(call.process.pid, signal.SIGTERM)
        assert call.wait() == 128 + signal.SIGTERM, call.output
        assert call.trials() == []
        assert [row.state for row in small_sweep.rows()] == ["running", "running"]
        small_sweep.behave()
        calls.finish("sweep.slots=2")

    assert epochs(small_sweep, 0) == epochs(small_sweep, 1) == EPOCHS
    check_promises(small_sweep, 3)


@pytest.mark.slow
def test_the_second_of_two_calls_takes_over_twice_in_a_row(new_sweep: SmallSweep) -> None:
    """The first two begin at once, where there is no database yet."""
    new_sweep.behave(pace=0.5)
    with calls_of(new_sweep) as calls:
        two = [calls.start("sweep.num_trials=4") for _ in range(2)]
        for number in range(2):
            leader, follower = wait_for_roles(two)
            wait_for(lambda number=number: epochs(new_sweep, number), leader)  # type: ignore[misc]
            leader.kill()
            two = [follower, calls.start("sweep.num_trials=4")] if number == 0 else [follower]
        assert follower.wait() == 0, follower.output

    check_promises(new_sweep, 4)


def wait_for_roles(calls: list[Call]) -> tuple[Call, Call]:
    """Return the call that runs the sweep and the one that follows it."""

    def leads(call: Call) -> bool:
        return "sweep small: 4 trials" in call.output

    def follows(call: Call) -> bool:
        return "following it" in call.output and not leads(call)

    one, two = calls
    wait_for(lambda: (leads(one) and follows(two)) or (follows(one) and leads(two)))
    return (one, two) if leads(one) else (two, one)


@pytest.mark.slow
def test_a_clock_moved_by_a_day_changes_nothing(small_sweep: SmallSweep) -> None:
    small_sweep.behave(pace=1.0)
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.num_trials=2", SHORT_LEASE, PATIENT)
        for number, change in enumerate(("-1 day", "+1 day")):
            wait_for_epoch(small_sweep, number, call)
            with closing(sqlite3.connect(small_sweep.runs / "optuna.db", timeout=60)) as database, database:
                database.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, ?)", (change,))
        assert call.wait() == 0, call.output

    assert epochs(small_sweep, 0) == epochs(small_sweep, 1) == EPOCHS
    check_promises(small_sweep, 2)


# ── the program ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_other_code_does_not_go_on_with_a_sweep_unless_told_to(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sweep.behave(slow=[0])
    stopped = small_sweep.run("sweep.max_minutes=0.001", "sweep.num_trials=1")
    small_sweep.behave()
    changed = {**code.code_digests(), "search/trial.py": "another"}
    monkeypatch.setattr(code, "code_digests", lambda: changed)

    with pytest.raises(SweepError, match=r"code has changed.*\(search/trial\.py\).*allow_changed_code=true"):
        small_sweep.run("sweep.num_trials=1")
    assert small_sweep.rows() == stopped.rows
    small_sweep.run("sweep.num_trials=1", "sweep.allow_changed_code=true")
    small_sweep.run("sweep.num_trials=2")  # what was allowed is what goes on
    check_promises(small_sweep, 2)


def test_every_source_file_counts_as_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code.code_digests()
    package = tmp_path / "harness"
    for name in before:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(Path(code.harness.__file__).parent / name, package / name)
    monkeypatch.setattr(code.harness, "__file__", str(package / "__init__.py"))
    assert code.code_digests.__wrapped__() == before

    (package / "search" / "new.py").write_text("x = 1")
    assert code.code_digests.__wrapped__().keys() - before.keys() == {"search/new.py"}
