"""A sweep from its plan to its leaderboard: the function to read first in this folder.

Every call looks at the database, does what is missing, and says how to go on. A first call, a repeated one,
one after Ctrl-C and one after a power cut differ in nothing but what they find.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import optuna
from rich.console import Console

from harness.config.compose import SweepPlan
from harness.search import record
from harness.search.disk import DiskKeeper
from harness.search.executors import Executor
from harness.search.home import (
    SweepHome,
    existing_study,
    find_home,
    is_closed,
    locked,
    needs_test,
    open_study,
)
from harness.search.leaderboard import ranked
from harness.search.messages import build_console, greet, say, show_result
from harness.search.progress import build_progress, view_of
from harness.search.record import SweepRecord
from harness.search.scheduler import Outcome, Scheduler
from harness.search.signals import StopSignals
from harness.search.slots import Slots, find_slots
from harness.search.space import check_space, describe_dimension
from harness.search.study import TrialRow, best_row, read_rows
from harness.search.throughput import is_measured, measured_slots
from harness.search.trial import TrialSpec

if TYPE_CHECKING:
    from harness.tracking.store import RunStore


@dataclass(frozen=True)
class SweepResult:
    """What a call of a sweep hands back."""

    name: str
    outcome: Outcome
    exit_code: int  # 0, or 130 / 143 where a signal ended the call
    rows: list[TrialRow]
    best: TrialRow | None
    test_metrics: dict[str, float] | None  # of the best trial's checkpoint, where it was evaluated
    parent_run_id: str | None


def run_sweep(
    plan: SweepPlan,
    *,
    console: Console | None = None,
    command: str | None = None,
    executor: Executor | None = None,
) -> SweepResult:
    """Run a sweep, or what is missing of it, and show its leaderboard.

    Args:
        command: what the user types to continue; made from the plan's overrides where absent.
        executor: places the trials; on this machine by default.

    Raises:
        ConfigError: a space or a device that cannot be.
        DataError: images that cannot be had.
        SweepError: another question under this name, a sweep that is being run, or trials that keep failing.
        TrackingError: a run store that cannot be written.
    """
    started = time.monotonic()
    console = console or build_console()
    home = find_home(plan, command)
    study = existing_study(home)
    if study is None:
        check_space(plan)
    if study is not None and is_closed(study, plan):
        result = _result(home, study, "complete", 0)
    else:
        with locked(home):
            result = _run(home, executor or _local_executor(), console, started)
    show_result(console, home, result)
    return result


def describe_sweep(plan: SweepPlan) -> str:
    """Return what a sweep would do, without doing it: the space, the budget, and one run of every arm.

    Raises:
        HarnessError: whatever would stop the sweep before its first trial.
    """
    from harness.training.plan import describe_run

    sweep, slots = plan.sweep, find_slots(plan.sweep, plan.base)
    lines = [
        f"objective:   {sweep.direction} {sweep.metric} in {sweep.num_trials} trials ({sweep.sampler.kind})",
        f"slots:       {_describe_slots(plan, slots)}",
        *(f"space:       {path}: {describe_dimension(d)}" for path, d in sweep.space.items()),
    ]
    for arm, config in check_space(plan).items():
        lines += ["", f"── {arm or 'every trial'}", describe_run(config)]
    return "\n".join(lines)


def _describe_slots(plan: SweepPlan, slots: Slots) -> str:
    if is_measured(plan):
        return "auto: measured at the start"
    return f"{slots.count} at a time, {slots.threads} CPU threads each"


def _run(home: SweepHome, executor: Executor, console: Console, started: float) -> SweepResult:
    sweep = home.plan.sweep
    executor.prepare()  # takes as long as what follows, and beside it
    slots = find_slots(sweep, home.plan.base)
    open_store = cache(lambda: _open_store(home))
    disk = _disk_keeper(home, open_store)
    known = existing_study(home)
    disk.check_room([] if known is None else read_rows(known))  # before anything new is written
    slots = measured_slots(home.plan, slots)
    study = open_study(home)
    study.set_user_attr(record.SLOTS, asdict(slots))
    store = open_store()
    with StopSignals() as signals, _sweep_record(home, study, store, signals) as sweep_record:
        scheduler = Scheduler(
            sweep=sweep,
            study=study,
            executor=executor,
            num_slots=slots.count,
            write_spec=lambda *trial: _write_spec(home, slots, sweep_record.tracker.run_id, trial),
            abandon=lambda row, status: _close_run(home, store, row, status),
            tend_disk=disk.tick,
            deadline=None if sweep.max_minutes is None else started + 60 * sweep.max_minutes,
        )
        greet(console, home, read_rows(study), slots)
        with build_progress(console, sweep.metric) as progress:

            def on_tick(rows: list[TrialRow]) -> None:
                sweep_record.follow(rows)
                progress.update(view_of(rows, sweep, started, slots.count))

            outcome = scheduler.run(signals, on_tick)
        if outcome != "interrupted":
            _evaluate_best(home, study, sweep_record, console)
    return _result(home, study, outcome, signals.exit_code)


def _open_store(home: SweepHome) -> RunStore:
    from harness.tracking.store import open_store

    return open_store(home.plan.base.tracking)


def _disk_keeper(home: SweepHome, open_store: Callable[[], RunStore]) -> DiskKeeper:
    sweep = home.plan.sweep

    def forget(row: TrialRow) -> None:
        if row.run_id is not None:
            open_store().forget_checkpoint(row.run_id)

    return DiskKeeper(
        sweep=sweep,
        folder_of=home.trial_directory,
        rank=lambda rows: ranked(rows, sweep.direction),
        forget=forget,
        copies=2 if home.plan.base.tracking.log_model else 1,
    )


@contextmanager
def _sweep_record(
    home: SweepHome, study: optuna.Study, store: RunStore, signals: StopSignals
) -> Iterator[SweepRecord]:
    """Keep the parent run open within, and close it with what truly became of this call."""
    from harness.tracking import names

    tags = {names.KIND: "sweep", names.SWEEP: home.name}
    known = study.user_attrs.get(record.PARENT_RUN_ID)
    tracker = store.start_run(home.name, home.experiment, tags, run_id=known)
    if known is None:
        study.set_user_attr(record.PARENT_RUN_ID, tracker.run_id)
    sweep_record = SweepRecord(home.plan, study, tracker, home.directory)
    sweep_record.open()
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield sweep_record
        status = "KILLED" if signals.count else "FINISHED"
    finally:
        sweep_record.close(status)
        tracker.finish(status)


def _write_spec(home: SweepHome, slots: Slots, parent_run_id: str, trial: tuple[int, int, int]) -> Path:
    number, trial_id, slot = trial
    spec = TrialSpec(
        sweep_name=home.name,
        storage=home.storage,
        number=number,
        trial_id=trial_id,
        plan=home.plan.to_dict(),
        experiment=home.experiment,
        parent_run_id=parent_run_id,
        threads=slots.threads,
        device_index=slots.device_index(slot),
    )
    path = home.trial_directory(number) / "spec.json"
    spec.save(path)
    return path


def _close_run(home: SweepHome, store: RunStore, row: TrialRow, status: Literal["FAILED", "KILLED"]) -> None:
    """Close the run of a trial whose process can no longer do it."""
    if row.run_id is not None:
        store.start_run(None, home.experiment, {}, run_id=row.run_id).finish(status)


def _evaluate_best(home: SweepHome, study: optuna.Study, sweep_record: SweepRecord, console: Console) -> None:
    """Read the test split once for the chosen model, and remember it: a repeated command won't look again."""
    best = best_row(read_rows(study), home.plan.sweep.direction)
    if best is None or best.checkpoint is None or not needs_test(study, home.plan, best):
        return
    from harness.training.evaluate import evaluate_checkpoint
    from harness.training.machine import prepare_process

    say(console, f"evaluating trial {best.number}'s checkpoint on the test split …")
    prepare_process(None, home.plan.base.trainer.keep_memory)
    metrics = evaluate_checkpoint(best.checkpoint, split="test", tracker=sweep_record.tracker)
    study.set_user_attr(record.TEST, {"trial": best.number, "metrics": metrics})


def _result(home: SweepHome, study: optuna.Study, outcome: Outcome, exit_code: int) -> SweepResult:
    rows = read_rows(study)
    return SweepResult(
        name=home.name,
        outcome=outcome,
        exit_code=exit_code if outcome == "interrupted" else 0,
        rows=rows,
        best=best_row(rows, home.plan.sweep.direction),
        test_metrics=study.user_attrs.get(record.TEST, {}).get("metrics"),
        parent_run_id=study.user_attrs.get(record.PARENT_RUN_ID),
    )


def _local_executor() -> Executor:
    from harness.search.executors.local import LocalExecutor

    return LocalExecutor()
