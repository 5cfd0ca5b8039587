"""One trial, start to end: `python -m harness.search.trial SPEC.json`, wherever an executor places it.

What is told to Optuna is the best epoch's score, since that epoch's checkpoint is what is kept. A trial that
is stopped stays RUNNING in the database and is resumed under its number, in its folder, as its MLflow run.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import TrialState

from harness.config.compose import SweepPlan
from harness.config.schema import RunConfig
from harness.errors import DivergedError, HarnessError, StorageError
from harness.logs import show_messages
from harness.search import study as studies
from harness.search.claims import Lease, beat_interval
from harness.search.space import suggest, trial_overrides
from harness.search.storage import open_storage

if TYPE_CHECKING:
    from harness.tracking import Tracker
    from harness.training.result import EpochReport, RunResult

TrainFunction = Callable[..., "RunResult"]  # harness.training.train.train
EXIT_STOPPED = 128 + signal.SIGTERM
EXIT_AWAY = os.EX_TEMPFAIL  # the database of sweeps is away; the trial can be resumed


@dataclass(frozen=True)
class TrialSpec:
    """A command line's worth of work: which trial of which sweep, and what it may use."""

    sweep_name: str
    storage: str  # URL of the database
    number: int
    trial_id: int
    plan: dict[str, Any]  # SweepPlan.to_dict()
    experiment: str
    parent_run_id: str
    attempt: int  # of the claim that this is: an older one than the trial's has lost it
    threads: int | None  # None: what the process is given
    device_index: int | None  # among the visible GPUs; None: no pinning

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # the database's address may hold a password
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TrialSpec:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class StopFlag:
    """Whether this process should stop: it was asked by SIGTERM, or its coordinator is gone."""

    def __init__(self) -> None:
        self._asked = False
        self._coordinator = multiprocessing.parent_process()
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __call__(self) -> bool:
        # The parent's end of a pipe, closed by the system whatever way the coordinator dies.
        return self._asked or (self._coordinator is not None and not self._coordinator.is_alive())


def run(spec_path: str, train: TrainFunction | None = None) -> int:
    """Run the trial of a spec and tell the study how it ended.

    Args:
        train: stands in for :func:`harness.training.train.train`.

    Returns:
        The process's exit code: 0 if the trial has ended (or is somebody else's), 143 if it was stopped and
        75 if the database went away; then it can be resumed.
    """
    show_messages()
    path = Path(spec_path)
    spec = TrialSpec.load(path)
    stop_requested = StopFlag()
    if spec.device_index is not None:
        _pin_device(spec.device_index)
    try:
        return _run(spec, path.parent, stop_requested, train)
    except StorageError as error:
        print(error, file=sys.stderr)
        return EXIT_AWAY


def _pin_device(index: int) -> None:
    """Leave one GPU visible; must happen before CUDA is touched."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(index + 1)]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)].strip()


def _run(
    spec: TrialSpec, folder: Path, stop_requested: Callable[[], bool], train: TrainFunction | None
) -> int:
    plan = SweepPlan.from_dict(spec.plan)
    storage = open_storage(spec.storage, plan.sweep.lease_seconds)
    lease = Lease(storage, spec.trial_id, spec.attempt, beat_interval(plan.sweep.lease_seconds))
    if not lease.is_held():
        return 0  # somebody has taken it over, or ended it
    study = studies.load_study_for_trial(
        storage, spec.sweep_name, plan.sweep, spec.number, plan.base.trainer.max_epochs
    )
    with lease:
        trial = optuna.trial.Trial(study, spec.trial_id)
        reported = frozenset(studies.known_trial(trial).intermediate_values)
        exit_code = _Attempt(spec, plan, study, trial, folder, lease, reported).run(stop_requested, train)
        if exit_code == EXIT_STOPPED:
            lease.let_go()
        return exit_code


@dataclass(frozen=True)
class _Attempt:
    """One process's attempt at a trial."""

    spec: TrialSpec
    plan: SweepPlan
    study: optuna.Study
    trial: optuna.Trial
    folder: Path
    lease: Lease
    reported: frozenset[int]  # steps that an earlier attempt has reported

    def run(self, stop_requested: Callable[[], bool], train: TrainFunction | None) -> int:
        try:
            result = self._train(stop_requested, train)
        except DivergedError as error:
            return self._tell_infeasible(str(error))
        except StorageError:
            raise
        except HarnessError as error:
            return self._tell_failed(str(error))
        except Exception as error:
            traceback.print_exc()
            if _is_out_of_memory(error):
                return self._tell_infeasible(f"out of memory ({_last_line(error)})")
            return self._tell_failed(_last_line(error))
        return self._tell(result)

    def _train(self, stop_requested: Callable[[], bool], train: TrainFunction | None) -> RunResult:
        config = self._suggest()
        _prepare(config, self.spec.threads)
        return (train or _real_train())(
            config,
            tracker=self._open_run(config),
            checkpoint_dir=self.folder,
            on_epoch=self._on_epoch,
            stop_requested=stop_requested,
        )

    def _suggest(self) -> RunConfig:
        overrides = trial_overrides(self.plan, suggest(self.trial, self.plan.sweep.space))
        self._note(studies.OVERRIDES, overrides)
        config = self.plan.compose_trial(overrides)
        self._note(studies.MAX_EPOCHS, config.trainer.max_epochs)
        return config

    def _open_run(self, config: RunConfig) -> Tracker:
        from harness.tracking import names
        from harness.tracking.store import open_store

        tags = {
            names.KIND: "trial",
            names.SWEEP: self.spec.sweep_name,
            names.TRIAL: str(self.spec.number),
        }
        tracker = open_store(config.tracking).start_run(
            f"trial-{self.spec.number:04d}",
            self.spec.experiment,
            tags,
            parent_run_id=self.spec.parent_run_id,
            run_id=self.trial.user_attrs.get(studies.RUN_ID),
        )
        self._note(studies.RUN_ID, tracker.run_id)
        return tracker

    def _on_epoch(self, report: EpochReport) -> Literal["continue", "prune", "interrupt"]:
        self.lease.check()  # before the epoch's checkpoint is written
        score, epochs_done = report.metrics[self.plan.sweep.metric], report.epoch + 1
        if math.isfinite(score) and epochs_done not in self.reported:
            self.trial.report(score, epochs_done)
        is_last = epochs_done >= report.max_epochs
        return "prune" if not is_last and self.trial.should_prune() else "continue"

    def _tell(self, result: RunResult) -> int:
        self.lease.check_last()
        self._note(studies.SECONDS, self.trial.user_attrs.get(studies.SECONDS, 0.0) + result.seconds)
        if result.status == "interrupted":
            return EXIT_STOPPED
        self._note(studies.BEST_EPOCH, result.best_epoch)
        if result.checkpoint is not None:
            self._note(studies.CHECKPOINT, str(result.checkpoint.resolve()))
        if result.status == "pruned":
            self.study.tell(self.trial, state=TrialState.PRUNED)
        else:
            self.study.tell(self.trial, result.metrics.get(self.plan.sweep.metric, result.score))
        return 0

    def _tell_infeasible(self, reason: str) -> int:
        """End it as pruned: a NaN must not be told, and TPE would ignore a failure and propose it again."""
        self.lease.check_last()
        print(f"the trial can have no score: {reason}", file=sys.stderr)
        self._note(studies.INFEASIBLE, reason)
        self.study.tell(self.trial, state=TrialState.PRUNED)
        return 0

    def _tell_failed(self, reason: str) -> int:
        self.lease.check_last()
        print(f"the trial failed: {reason}", file=sys.stderr)
        self._note(studies.REASON, reason)
        self.study.tell(self.trial, state=TrialState.FAIL)
        return 0

    def _note(self, key: str, value: object) -> None:
        if self.trial.user_attrs.get(key) != value:
            self.trial.set_user_attr(key, value)


def _real_train() -> TrainFunction:
    from harness.training.train import train

    return train


def _prepare(config: RunConfig, threads: int | None) -> None:
    from harness.training.machine import prepare_process

    # What the slots were counted with wins: `resolve_slots` has already heard trainer.threads.
    prepare_process(threads or config.trainer.threads, config.trainer.keep_memory)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
