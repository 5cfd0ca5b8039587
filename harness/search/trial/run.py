"""Runs one trial in its own process, from its spec to the exit code; executors call `run`.

A trial that is stopped stays RUNNING in the database. It is resumed under the same number, in the same
folder, as the same MLflow run. Read next `attempt.py`, for what the trial reads from and writes to the study,
and `harness/training/train.py`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from harness.config.compose import SweepPlan
from harness.config.schema import RunConfig
from harness.credentials import shown
from harness.errors import StorageError, first_line
from harness.logs import show_messages
from harness.search.database.optuna_private import add_to_cache
from harness.search.database.retrying_storage import is_outage
from harness.search.database.storage import database_exists, open_storage
from harness.search.ownership.lease import Lease, beat_interval
from harness.search.study import trials as studies
from harness.search.trial.attempt import Attempt
from harness.search.trial.exit_codes import EXIT_STOPPED, EXIT_UNAVAILABLE
from harness.search.trial.outcomes import RESUMABLE_ERRORS
from harness.search.trial.spec import StopFlag, TrialSpec, pin_devices
from harness.training.devices.launch_ranks import is_rank

if TYPE_CHECKING:
    from harness.training.result import RunResult

TrainFunction = Callable[..., "RunResult"]  # harness.training.train.train


def run(spec_path: str, train: TrainFunction | None = None) -> int:
    """Run the trial of a spec and tell the study how it ended.

    Args:
        train: stands in for :func:`harness.training.train.train`.

    Returns:
        The process's exit code, see `exit_codes.py`. Unless it is 0, the trial can be resumed.
    """
    show_messages()
    path = Path(spec_path)
    spec = TrialSpec.load(path)
    sys.argv = shlex.split(spec.command) or sys.argv  # recorded with the run: what the user typed
    stop_requested = StopFlag()
    if spec.device_indices is not None:
        pin_devices(spec.device_indices)  # before torch is imported, which may look for GPUs
    try:
        if spec.plan["sweep"]["devices_per_trial"] == 1:
            return run_attempt(spec, path.parent, stop_requested, train)
        from harness.search.trial.multi_device import run_over_ranks

        return run_over_ranks(spec, path.parent, train or _real_train())
    except RESUMABLE_ERRORS as error:
        print(error, file=sys.stderr)
        return EXIT_UNAVAILABLE


def run_attempt(
    spec: TrialSpec, folder: Path, stop_requested: Callable[[], bool], train: TrainFunction | None
) -> int:
    """Train the trial in this process, and tell the study how it ended.

    Where the trial trains on several devices, rank 0 calls this.

    Args:
        folder: the trial's own, for its checkpoints.
        stop_requested: asked after each batch; True leaves the trial to be resumed.
        train: stands in for :func:`harness.training.train.train`.

    Returns:
        The exit code, see `exit_codes.py`.

    Raises:
        StorageError: the database does not answer; the trial can be resumed.
        TrackingError: the run store does not answer; the trial can be resumed.
        DiskFullError: the trial can be resumed once there is space.
    """
    plan = SweepPlan.from_dict(spec.plan)
    if not database_exists(spec.storage):
        raise StorageError(f"the database of sweeps {shown(spec.storage)} is gone")
    storage = open_storage(spec.storage, plan.sweep.lease_seconds, trusted=True)
    lease = Lease(storage, spec.trial_id, spec.attempt, beat_interval(plan.sweep.lease_seconds))
    if not lease.is_held():
        _tell_other_ranks(None)
        return 0  # another process has taken the trial over, or ended it
    study = studies.load_study_for_trial(storage, spec.sweep_name, plan.sweep, spec.number)

    def stop() -> bool:
        """Return whether to stop; called after each batch, and before a checkpoint file is replaced."""
        lease.check_after_sleep()
        return stop_requested()

    with lease:
        trial = optuna.trial.Trial(study, spec.trial_id)
        reported = frozenset(add_to_cache(trial).intermediate_values)
        attempt = Attempt(spec, plan, study, trial, lease, reported)
        try:
            try:
                config = attempt.prepare()
                tracker = attempt.open_run(config, stop_requested)
            except Exception:
                _tell_other_ranks(None)  # or they would wait for a configuration
                raise
            _tell_other_ranks(config)
            train = train or _real_train()  # imported within the lease: it takes seconds
            result = train(
                config,
                tracker=tracker,
                checkpoint_dir=folder,
                on_epoch=attempt.on_epoch,
                stop_requested=stop,
            )
        except RESUMABLE_ERRORS:
            raise  # the study is told nothing, so that the trial can be resumed
        except Exception as error:
            if is_outage(error):  # of a method that RetryingStorage does not repeat
                cause = first_line(error.__cause__ or error)
                raise StorageError(f"the database of sweeps does not answer: {cause}") from error
            return attempt.settle(error)
        exit_code = attempt.tell(result)
        if exit_code == EXIT_STOPPED:
            lease.let_go()
        return exit_code


def _tell_other_ranks(config: RunConfig | None) -> None:
    """Send the other ranks, if there are any, what to train; None: nothing, so that they exit."""
    if is_rank():  # asked without importing torch
        from harness.training.devices.collectives import current_ranks

        current_ranks().broadcast(config)


def _real_train() -> TrainFunction:
    from harness.training.train import train

    return train
