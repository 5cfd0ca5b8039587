"""One trial, start to end: `python -m harness.search.trial SPEC.json`, wherever an executor places it.

What is told to Optuna is the best epoch's score, since that epoch's checkpoint is what is kept. A trial that
is stopped stays RUNNING in the database and is resumed under its number, in its folder, as its MLflow run.
"""

from __future__ import annotations

import functools
import math
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import TrialState
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from harness.config.compose import SweepPlan
from harness.config.schema import RunConfig
from harness.credentials import shown
from harness.data import remember_auto
from harness.errors import HarnessError, NoSuchRunError, StorageError, TrackingError, first_line
from harness.logs import show_messages
from harness.search.ownership.lease import Lease, beat_interval
from harness.search.study import keys
from harness.search.study import trials as studies
from harness.search.study.optuna_private import add_to_cache
from harness.search.study.retrying_storage import PATIENCE_S, is_outage
from harness.search.study.storage import database_exists, open_storage
from harness.search.suggest.constraints import broken_constraints, tell_costs
from harness.search.suggest.pruners import build_pruner, report_score, should_prune
from harness.search.suggest.space import suggest
from harness.search.trial.exit_codes import EXIT_RESTART, EXIT_STOPPED, EXIT_UNAVAILABLE
from harness.search.trial.memory_limit import footprint, why_it_cannot_fit
from harness.search.trial.outcomes import (
    RESUMABLE_ERRORS,
    InfeasibleError,
    is_lost_worker,
    is_out_of_memory,
    judge,
)
from harness.search.trial.replicates import choose_seed
from harness.search.trial.spec import StopFlag, TrialSpec, pin_devices

if TYPE_CHECKING:
    from harness.tracking import Tracker
    from harness.tracking.mlflow_tracker import MlflowTracker
    from harness.training.result import EpochReport, RunResult

TrainFunction = Callable[..., "RunResult"]  # harness.training.train.train


def run(spec_path: str, train: TrainFunction | None = None) -> int:
    """Run the trial of a spec and tell the study how it ended.

    Args:
        train: stands in for :func:`harness.training.train.train`.

    Returns:
        The process's exit code: 0 if the trial has ended (or is somebody else's), 143 if it was stopped and
        75 if a database is away or the disk full; then it can be resumed.
    """
    show_messages()
    path = Path(spec_path)
    spec = TrialSpec.load(path)
    sys.argv = shlex.split(spec.command) or sys.argv  # what is recorded: the user's words, no process's own
    stop_requested = StopFlag()
    if spec.device_indices is not None:
        pin_devices(spec.device_indices)
    num_devices = spec.plan["sweep"]["devices_per_trial"]
    try:
        if num_devices == 1:
            return _run_attempt(spec, path.parent, stop_requested, train)
        from harness.search.trial.multi_device import run_over_ranks

        return run_over_ranks(
            functools.partial(_run_attempt, spec, path.parent),
            train or _real_train(),
            num_devices,
            path.parent,
            threads=spec.threads,
            grace_s=spec.plan["sweep"]["grace_seconds"],
        )
    except RESUMABLE_ERRORS as error:
        print(error, file=sys.stderr)
        return EXIT_UNAVAILABLE


def _run_attempt(
    spec: TrialSpec, folder: Path, stop_requested: Callable[[], bool], train: TrainFunction | None
) -> int:
    """Train the trial in this process, and tell the study how it ended; return the exit code."""
    plan = SweepPlan.from_dict(spec.plan)
    if not database_exists(spec.storage):
        raise StorageError(f"the database of sweeps {shown(spec.storage)} is gone")
    storage = open_storage(spec.storage, plan.sweep.lease_seconds, trusted=True)
    lease = Lease(storage, spec.trial_id, spec.attempt, beat_interval(plan.sweep.lease_seconds))
    if not lease.is_held():
        return 0  # another process has taken the trial over, or ended it
    study = studies.load_study_for_trial(storage, spec.sweep_name, plan.sweep, spec.number)
    with lease:
        trial = optuna.trial.Trial(study, spec.trial_id)
        reported = frozenset(add_to_cache(trial).intermediate_values)
        attempt = _Attempt(spec, plan, study, trial, folder, lease, reported)
        try:
            result = attempt.train(stop_requested, train)
        except RESUMABLE_ERRORS:
            raise
        except Exception as error:
            if is_outage(error):  # of a call that is not repeated
                cause = first_line(error.__cause__ or error)
                raise StorageError(f"the database of sweeps does not answer: {cause}") from error
            return attempt.settle(error)
        exit_code = attempt.tell(result)
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
    _opened: list[Tracker] = field(default_factory=list)  # its run, once there is one

    def settle(self, error: Exception) -> int:
        """End the trial as the error says, or leave it to be started again."""
        if not isinstance(error, HarnessError):
            print(shown(traceback.format_exc()), file=sys.stderr)
        verdict, reason = judge(error)
        if verdict == "lost":
            print(f"the trial is to be started again: {reason}", file=sys.stderr)
            return EXIT_RESTART
        return self._tell_infeasible(reason) if verdict == "infeasible" else self._tell_failed(reason)

    def train(self, stop_requested: Callable[[], bool], train: TrainFunction | None) -> RunResult:
        def stop() -> bool:
            self.lease.check_after_sleep()
            return stop_requested()

        config = self._suggest()
        _prepare(config, self.spec.threads)
        needed = footprint(config)
        self._check_feasible(config, needed)
        try:
            return (train or _real_train())(
                config,
                tracker=self._open_run(config, stop_requested),
                checkpoint_dir=self.folder,
                on_epoch=self._on_epoch,
                stop_requested=stop,  # asked after each batch, and before a checkpoint takes its place
            )
        except Exception as error:
            if is_out_of_memory(error) and not is_lost_worker(error):
                self._note({keys.OUT_OF_MEMORY: needed})
            raise

    def _check_feasible(self, config: RunConfig, needed: dict[str, Any]) -> None:
        """Spare the training where its end is known already."""
        if (reason := why_it_cannot_fit(self.study, needed)) is not None:
            raise InfeasibleError(reason)
        if any(constraint.cost == "params_millions" for constraint in self.plan.sweep.parsed_constraints()):
            tell_costs(self.trial, self.plan.sweep, {"params_millions": _count_params_millions(config)})
            if (reason := broken_constraints(self.trial)) is not None:
                raise InfeasibleError(reason)

    def _suggest(self) -> RunConfig:
        chosen = suggest(self.trial, self.plan.sweep.space)
        config = self.plan.compose_trial(chosen)
        remember_auto(config.data, self.spec.data_kind)
        seed = choose_seed(self.study, self.spec.trial_id, self.plan.trial_overrides(chosen), config.seed)
        self._note({keys.MAX_EPOCHS: config.trainer.max_epochs})
        return config.model_copy(update={"seed": seed})

    def _open_run(self, config: RunConfig, stop_requested: Callable[[], bool]) -> Tracker:
        """Open the trial's run; a store that is away for a while is waited for."""
        retrying = Retrying(
            retry=retry_if_exception(is_away),
            stop=lambda state: stop_requested() or stop_after_delay(PATIENCE_S)(state),
            wait=wait_fixed(1.0),
            reraise=True,
        )
        tracker = retrying(self._open_run_now, config)
        self._note({keys.RUN_ID: tracker.run_id})
        tracker.before_write = self.lease.check_after_sleep  # it may have lost the trial while suspended
        self._opened.append(tracker)
        return tracker

    def _open_run_now(self, config: RunConfig) -> MlflowTracker:
        from harness.tracking import names
        from harness.tracking.store import open_store

        store, number = open_store(config.tracking), str(self.spec.number)
        run_id = self.trial.user_attrs.get(keys.RUN_ID)
        if run_id is None and self.spec.attempt > 1:  # killed before it could note which it had opened?
            known = {names.PARENT: self.spec.parent_run_id, names.TRIAL: number}
            run_id = store.find_run(self.spec.experiment, known)
        if run_id is not None and not store.has_run(run_id) and store.has_run(self.spec.parent_run_id):
            print(f"run {run_id} was deleted from MLflow for good: going on under a new one", file=sys.stderr)
            run_id = None
        return store.start_run(
            f"trial-{self.spec.number:04d}",
            self.spec.experiment,
            {names.KIND: "trial", names.SWEEP: self.spec.sweep_name, names.TRIAL: number},
            parent_run_id=self.spec.parent_run_id,
            run_id=run_id,
        )

    def _on_epoch(self, report: EpochReport) -> Literal["continue", "prune", "interrupt"]:
        self.lease.check()  # before the epoch's checkpoint is written
        score, epochs_done = report.metrics[self.plan.sweep.metric], report.epoch + 1
        if math.isfinite(score) and epochs_done not in self.reported:
            report_score(self.study, self.spec.trial_id, epochs_done, score)
        if epochs_done >= report.max_epochs:
            return "continue"
        pruner = build_pruner(self.plan.sweep.pruner, self.plan.base.trainer.max_epochs)
        return "prune" if should_prune(self.study, self.spec.trial_id, pruner) else "continue"

    def tell(self, result: RunResult) -> int:
        self.lease.check_last()
        seconds = self.trial.user_attrs.get(keys.SECONDS, 0.0) + result.seconds
        if result.status == "interrupted":
            self._note({keys.SECONDS: seconds})
            return EXIT_STOPPED
        checkpoint = {} if result.checkpoint is None else {keys.CHECKPOINT: str(result.checkpoint.resolve())}
        self._note({keys.SECONDS: seconds, keys.BEST_EPOCH: result.best_epoch, **checkpoint})
        sweep = self.plan.sweep
        tell_costs(self.trial, sweep, result.costs)
        is_infeasible = broken_constraints(self.trial) is not None
        if result.status == "pruned":
            self._record_outcome("infeasible" if is_infeasible else "pruned")
            self.study.tell(self.trial, state=TrialState.PRUNED)
            return 0
        second = [] if sweep.second_objective is None else [result.costs[sweep.second_objective.metric]]
        score = result.metrics.get(sweep.metric, result.score)
        self._record_outcome("infeasible" if is_infeasible else "complete", score)
        self.study.tell(self.trial, [score, *second])
        return 0

    def _tell_infeasible(self, reason: str) -> int:
        """End it as pruned and beyond a constraint: TPE would ignore a failure, and propose it again."""
        self.lease.check_last()
        print(f"the trial can have no score: {reason}", file=sys.stderr)
        self._note({keys.INFEASIBLE: reason})
        self.trial.set_constraint(keys.INFEASIBLE, 1.0)
        self._record_outcome("infeasible")
        self.study.tell(self.trial, state=TrialState.PRUNED)
        return 0

    def _tell_failed(self, reason: str) -> int:
        self.lease.check_last()
        print(f"the trial failed: {reason}", file=sys.stderr)
        self._note({keys.REASON: reason})
        self._record_outcome("failed")
        self.study.tell(self.trial, state=TrialState.FAIL)
        return 0

    def _record_outcome(self, outcome: str, score: float | None = None) -> None:
        """Let the run say how the study takes the trial: the best one is chosen by it (tracking/choice.py).

        It is said first: a trial that dies before it has told the study is started again, with its run.
        """
        from harness.tracking import names

        told = {} if score is None else {names.SCORE: repr(float(score))}
        for tracker in self._opened:
            tracker.set_tags({names.OUTCOME: outcome, **told})

    def _note(self, notes: Mapping[str, object]) -> None:
        """Note what is new of these at the trial, all in one write."""
        known = self.trial.user_attrs
        news = {key: value for key, value in notes.items() if known.get(key) != value}
        if news:
            studies.storage_of(self.study).set_trial_user_attrs(self.spec.trial_id, news)


def is_away(error: BaseException) -> bool:
    """Return whether the run store may answer later, rather than has answered."""
    return isinstance(error, TrackingError) and not isinstance(error, NoSuchRunError)


def _real_train() -> TrainFunction:
    from harness.training.train import train

    return train


def _count_params_millions(config: RunConfig) -> float:
    from harness.training.costs import count_params_millions

    return count_params_millions(config)


def _prepare(config: RunConfig, threads: int | None) -> None:
    from harness.training.machine import prepare_process

    # What the slots were counted with wins: `resolve_slots` has already heard trainer.threads.
    prepare_process(threads or config.trainer.threads, config.trainer.keep_memory)
