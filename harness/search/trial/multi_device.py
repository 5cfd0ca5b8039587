"""A trial on several devices: a process (rank) for each; all call `train` with one configuration.

`run.py` calls `run_over_ranks`. Only rank 0 uses Optuna and MLflow: it makes the attempt as a single process
would (`run.run_attempt`) and sends the other ranks the configuration. Read
`harness/training/devices/launch_ranks.py` for how ranks are started and stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from harness.config.schema import RunConfig
from harness.search.trial.attempt import set_up_process
from harness.search.trial.outcomes import RESUMABLE_ERRORS
from harness.search.trial.run import TrainFunction, run_attempt
from harness.search.trial.spec import TrialSpec
from harness.tracking.tracker import SilentTracker
from harness.training.devices.collectives import current_ranks
from harness.training.devices.launch_ranks import EXIT_STOPPED, launch, stop_requested


def run_over_ranks(spec: TrialSpec, folder: Path, train: TrainFunction) -> int:
    """Run a trial in several processes of this machine.

    Args:
        folder: the trial's own.
        train: importable by name, because ranks may be spawned.

    Returns:
        The trial's exit code: 143 if it was stopped and can be resumed, 0 if it has ended, any other if a
        rank died.

    Raises:
        StorageError: the database does not answer; the trial can be resumed.
        TrackingError: the run store does not answer; the trial can be resumed.
        DiskFullError: the trial can be resumed once there is space.
    """
    num_ranks, grace_s = spec.plan["sweep"]["devices_per_trial"], spec.plan["sweep"]["grace_seconds"]
    try:
        return launch(_run_rank, num_ranks, spec, folder, train, grace_s=grace_s)
    except RESUMABLE_ERRORS:
        raise  # the study is told nothing, so that the trial can be resumed
    except Exception as error:
        # The error came from a rank, and all ranks have exited. Report it from this process as if training in
        # a single process had raised it.
        failure = error

    def fail(config: RunConfig, *, tracker: Any, **_: Any) -> NoReturn:
        tracker.set_tags({"harness.failure": f"{type(failure).__name__}: {failure}"[:500]})
        tracker.finish("FAILED")
        raise failure

    return run_attempt(spec, folder, lambda: False, fail)


def _run_rank(spec: TrialSpec, folder: Path, train: TrainFunction) -> int:
    """Do one rank's part of the trial; return its exit code."""
    ranks = current_ranks()
    if ranks.is_zero:
        return run_attempt(spec, folder, stop_requested, train)
    config: RunConfig | None = ranks.broadcast(None)  # what rank 0 sends before it trains
    if config is None:
        return 0  # rank 0 has no configuration to train, and tells the study why
    set_up_process(config, spec.threads)
    result = train(config, tracker=SilentTracker(), checkpoint_dir=folder, stop_requested=stop_requested)
    return EXIT_STOPPED if result.status == "interrupted" else 0
