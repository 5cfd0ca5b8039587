"""A trial on several devices: a process (rank) for each; all call `train` with one configuration.

`run.py` calls `run_over_ranks`. Rank 0 alone knows of Optuna and MLflow: it makes the attempt as a single
process would (`run.run_attempt`) and sends the others the configuration. Read
`harness/training/launch_ranks.py` for how ranks are started and stopped.
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
from harness.training.collectives import current_ranks
from harness.training.launch_ranks import EXIT_STOPPED, launch, stop_requested


def run_over_ranks(spec: TrialSpec, folder: Path, train: TrainFunction) -> int:
    """Run a trial in several processes of this machine.

    Args:
        folder: the trial's own.
        train: importable by name, because ranks may be spawned.

    Returns:
        The trial's exit code: 143 stopped and resumable, 0 ended, others: a rank died.

    Raises:
        StorageError: a rank found the database away; the trial can be resumed. Likewise:
        TrackingError, DiskFullError.
    """
    num_ranks, grace_s = spec.plan["sweep"]["devices_per_trial"], spec.plan["sweep"]["grace_seconds"]
    try:
        return launch(_run_rank, num_ranks, spec, folder, train, grace_s=grace_s)
    except RESUMABLE_ERRORS:
        raise  # the study is told nothing: the trial goes on later
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
        return 0  # rank 0 has nothing to train, and tells the study why
    set_up_process(config, spec.threads)
    result = train(config, tracker=SilentTracker(), checkpoint_dir=folder, stop_requested=stop_requested)
    return EXIT_STOPPED if result.status == "interrupted" else 0
