"""One trial over several devices: rank 0 runs it as any trial is run, the others train along with it.

Rank 0 alone knows of Optuna and MLflow. It tells the others which run it is; from there on all call `train`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.config.schema import RunConfig
from harness.search.trial.outcomes import RESUMABLE_ERRORS
from harness.tracking.tracker import SilentTracker
from harness.training.collectives import Ranks, current_ranks
from harness.training.launch_ranks import EXIT_STOPPED, launch, stop_requested

if TYPE_CHECKING:
    from harness.training.result import RunResult

TrainFunction = Callable[..., "RunResult"]
RunTrial = Callable[[Callable[[], bool], TrainFunction], int]  # (stop_requested, train) -> exit code


def run_over_ranks(
    run_trial: RunTrial,
    train: TrainFunction,
    num_ranks: int,
    folder: Path,
    threads: int | None,
    grace_s: float,
) -> int:
    """Run a trial over several processes of this machine.

    Args:
        run_trial: runs it in one process, with what stands in for training; importable by name.
        threads: of each process.
        grace_s: between asking a rank to stop and ending it.

    Returns:
        The trial's exit code: 143 stopped and resumable, 0 ended, others: a rank died.

    Raises:
        StorageError: a database or the disk let a rank down; the trial can be resumed. Likewise:
        TrackingError, DiskFullError.
    """
    try:
        return launch(_run_rank, num_ranks, run_trial, train, folder, threads, grace_s=grace_s)
    except RESUMABLE_ERRORS:
        raise  # nothing is to be told
    except Exception as error:
        # A rank's: by now all are gone, and it is told here as if training in one process had raised it.
        return run_trial(lambda: False, _Failed(error))


class _Failed:
    """Stands in for training that has failed already, so that the trial ends with that failure."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, config: RunConfig, *, tracker: Any, **_: Any) -> NoReturn:
        tracker.set_tags({"harness.failure": f"{type(self.error).__name__}: {self.error}"[:500]})
        tracker.finish("FAILED")
        raise self.error


def _run_rank(run_trial: RunTrial, train: TrainFunction, folder: Path, threads: int | None) -> int:
    ranks = current_ranks()
    if ranks.is_zero:
        return _lead(run_trial, train, ranks)
    return _follow(train, folder, threads, ranks)


def _lead(run_trial: RunTrial, train: TrainFunction, ranks: Ranks) -> int:
    has_begun = False

    def train_together(config: RunConfig, **how: Any) -> RunResult:
        nonlocal has_begun
        has_begun = True
        return train(ranks.broadcast(config), **how)

    code = run_trial(stop_requested, train_together)
    if not has_begun:
        ranks.broadcast(None)  # the trial has ended elsewhere, or its configuration cannot be
    return code


def _follow(train: TrainFunction, folder: Path, threads: int | None, ranks: Ranks) -> int:
    from harness.training.machine import prepare_process

    config: RunConfig | None = ranks.broadcast(None)
    if config is None:
        return 0
    prepare_process(threads or config.trainer.threads, config.trainer.keep_memory)
    result = train(config, tracker=SilentTracker(), checkpoint_dir=folder, stop_requested=stop_requested)
    return EXIT_STOPPED if result.status == "interrupted" else 0
