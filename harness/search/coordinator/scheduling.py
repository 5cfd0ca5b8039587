"""A sweep's scheduler, as every machine that works on it builds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import optuna

from harness.config.sweep import SweepConfig
from harness.data import resolve_auto
from harness.search.coordinator.checkpoint_cleanup import DiskKeeper
from harness.search.coordinator.scheduler import Scheduler
from harness.search.coordinator.slots import Slots
from harness.search.coordinator.stop import StopRequest
from harness.search.executors.base import Executor
from harness.search.ownership.claims import Claim, Claims
from harness.search.report.leaderboard import ranked
from harness.search.report.pareto import pareto_front
from harness.search.study import keys
from harness.search.study.locate import SweepHome
from harness.search.study.trials import TrialRow, storage_of
from harness.search.trial.spec import TrialSpec

if TYPE_CHECKING:
    from harness.tracking.store import RunStore


def build_scheduler(
    home: SweepHome,
    study: optuna.Study,
    store: RunStore,
    executor: Executor,
    slots: Slots,
    started: float,
    keep_place: Callable[[], None] = lambda: None,
) -> Scheduler:
    """Return the loop that keeps this machine's slots full."""
    sweep, stop = home.plan.sweep, StopRequest(study)
    return Scheduler(
        sweep=sweep,
        study=study,
        claims=Claims(study, storage_of(study)),
        executor=executor,
        num_slots=slots.count,
        write_spec=lambda claim, slot: _write_spec(home, study, slots, claim, slot),
        abandon=lambda row, status: _close_run(home, store, row, status),
        tend_disk=disk_keeper(home, lambda: store).tick,
        deadline=None if sweep.max_minutes is None else started + 60 * sweep.max_minutes,
        stop_requested=stop.is_new,
        keep_place=keep_place,
    )


def _write_spec(home: SweepHome, study: optuna.Study, slots: Slots, claim: Claim, slot: int) -> Path:
    together = home.plan.sweep.devices_per_trial
    spec = TrialSpec(
        sweep_name=home.name,
        storage=home.storage,
        number=claim.number,
        trial_id=claim.trial_id,
        attempt=claim.attempt,
        plan=home.plan.to_dict(),
        data_kind=resolve_auto(home.plan.base.data).kind,
        experiment=home.experiment,
        parent_run_id=study.user_attrs[keys.PARENT_RUN_ID],
        threads=max(1, slots.threads // together),
        device_indices=slots.device_indices(slot, together),
        command=home.command,
    )
    # A file for each attempt: a process that is late must not take the next one's for its own.
    path = home.trial_directory(claim.number) / f"spec-{claim.attempt}.json"
    spec.save(path)
    return path


def _close_run(home: SweepHome, store: RunStore, row: TrialRow, status: Literal["FAILED", "KILLED"]) -> None:
    """Close the run of a trial whose process can no longer do it."""
    if row.run_id is not None:
        store.close_run(row.run_id, status)


def disk_keeper(home: SweepHome, open_store: Callable[[], RunStore]) -> DiskKeeper:
    """Return who removes the checkpoints that a sweep no longer needs."""
    sweep = home.plan.sweep

    def forget(row: TrialRow) -> None:
        if row.run_id is not None:
            open_store().forget_checkpoint(row.run_id)

    return DiskKeeper(
        sweep=sweep,
        folder_of=home.trial_directory,
        rank=lambda rows: kept_first(rows, sweep),
        forget=forget,
        copies=2 if home.plan.base.tracking.log_model else 1,
    )


def kept_first(rows: Sequence[TrialRow], sweep: SweepConfig) -> list[TrialRow]:
    """Return the trials in the order in which their checkpoints are worth keeping.

    What a sweep with two objectives answers is its Pareto front, which so comes before everything else.
    """
    front = pareto_front(rows, sweep)
    return [*front, *(row for row in ranked(rows, sweep.direction) if row not in front)]
