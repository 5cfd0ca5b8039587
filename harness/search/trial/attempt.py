"""What a trial reads from its study and the run store, and what it writes to them.

`run.py` makes an :class:`Attempt` in the trial's process. It calls `prepare` and `open_run`, trains, and then
calls `tell`, or `settle` after an error. The score that the study is told is that of the epoch whose
checkpoint is kept.
"""

from __future__ import annotations

import math
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import optuna
import psutil
from optuna.trial import TrialState
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from harness.config.compose import SweepPlan
from harness.config.schema import RunConfig
from harness.credentials import shown
from harness.data import remember_auto
from harness.errors import HarnessError, NoSuchRunError, TrackingError
from harness.search.database.retrying_storage import PATIENCE_S
from harness.search.ownership.lease import Lease
from harness.search.study import keys
from harness.search.study.trials import storage_of
from harness.search.suggest.compute import with_compute
from harness.search.suggest.constraints import broken_constraints, tell_costs
from harness.search.suggest.pruners import build_pruner, report_score, should_prune
from harness.search.suggest.space import suggest
from harness.search.trial.exit_codes import EXIT_RESTART, EXIT_STOPPED
from harness.search.trial.memory_limit import footprint, why_it_cannot_fit
from harness.search.trial.outcomes import InfeasibleError, is_lost_worker, is_out_of_memory, judge
from harness.search.trial.replicates import choose_seed
from harness.search.trial.spec import TrialSpec

if TYPE_CHECKING:
    from harness.tracking import Tracker
    from harness.tracking.mlflow_tracker import MlflowTracker
    from harness.training.result import EpochReport, RunResult


@dataclass(frozen=True)
class Attempt:
    """One process's attempt at a trial; a trial that was interrupted has several."""

    spec: TrialSpec
    plan: SweepPlan
    study: optuna.Study
    trial: optuna.Trial
    lease: Lease
    reported: frozenset[int]  # steps that an earlier attempt has reported
    _opened: list[Tracker] = field(default_factory=list)  # the trial's run, once it is open
    _span: dict[str, Any] = field(
        default_factory=dict
    )  # this attempt's, as Optuna's copy of the trial is older
    _needed: dict[str, Any] = field(default_factory=dict)  # the footprint, see memory_limit.py

    def prepare(self) -> RunConfig:
        """Return the configuration of the trial's run.

        Raises:
            InfeasibleError: an earlier trial that needed no more memory ran out of it, or the number of
                parameters breaks a constraint.
            ConfigError: the sampler's values make no valid run.
        """
        config = self._suggest()
        set_up_process(config, self.spec.threads)
        self._needed.update(footprint(config))
        if (reason := why_it_cannot_fit(self.study, self._needed)) is not None:
            raise InfeasibleError(reason)
        if any(constraint.cost == "params_millions" for constraint in self.plan.sweep.parsed_constraints()):
            tell_costs(self.trial, self.plan.sweep, {"params_millions": _count_params_millions(config)})
            if (reason := broken_constraints(self.trial)) is not None:
                raise InfeasibleError(reason)
        return config

    def _suggest(self) -> RunConfig:
        chosen = suggest(self.trial, self.plan.sweep.space)
        config = self.plan.compose_trial(chosen)
        remember_auto(config.data, self.spec.data_kind)
        seed = choose_seed(self.study, self.spec.trial_id, self.plan.trial_overrides(chosen), config.seed)
        self._note({keys.MAX_EPOCHS: config.trainer.max_epochs})
        drawn: dict[str, Any] = {"seed": seed}
        if (split_seed := self.trial.user_attrs.get(keys.SPLIT_SEED)) is not None:
            drawn["data"] = config.data.model_copy(update={"split_seed": split_seed})
        config = config.model_copy(update=drawn)
        if self.spec.compute is not None:
            config = with_compute(config, self.spec.compute, self.plan.sweep.max_passes)
        return config

    @property
    def _replicated(self) -> int | None:
        """The trial whose configuration this one repeats with a fresh seed; None: the search proposed it."""
        number: int | None = self.trial.user_attrs.get(keys.REPLICATE_OF)
        return number

    def open_run(self, config: RunConfig, stop_requested: Callable[[], bool]) -> Tracker:
        """Open the trial's run in MLflow; if the run store does not answer, try again for a while.

        Raises:
            TrackingError: the run store still does not answer, or cannot be written.
        """
        retrying = Retrying(
            retry=retry_if_exception(is_away),
            stop=lambda state: stop_requested() or stop_after_delay(PATIENCE_S)(state),
            wait=wait_fixed(1.0),
            reraise=True,
        )
        tracker = retrying(self._open_run_now, config)
        self._span.update(span_of_this_process())
        self._note({keys.RUN_ID: tracker.run_id, keys.SPANS: self._spans()})
        tracker.before_write = self.lease.check_after_sleep  # we may have lost the trial while suspended
        self._opened.append(tracker)
        return tracker

    def _open_run_now(self, config: RunConfig) -> MlflowTracker:
        from harness.tracking import names
        from harness.tracking.store import open_store

        store, number = open_store(config.tracking), str(self.spec.number)
        run_id = self.trial.user_attrs.get(keys.RUN_ID)
        if run_id is None and self.spec.attempt > 1:  # the first attempt may not have stored the id
            known = {names.PARENT: self.spec.parent_run_id, names.TRIAL: number}
            run_id = store.find_run(self.spec.experiment, known)
        if run_id is not None and not store.has_run(run_id) and store.has_run(self.spec.parent_run_id):
            print(f"run {run_id} was deleted from MLflow for good: going on under a new one", file=sys.stderr)
            run_id = None
        name, tags = f"trial-{self.spec.number:04d}", {names.KIND: "trial", names.SWEEP: self.spec.sweep_name}
        if self._replicated is not None:
            name += f"-repeats-{self._replicated:04d}"
            tags[names.REPLICATE_OF] = str(self._replicated)
        return store.start_run(
            name,
            self.spec.experiment,
            {**tags, names.TRIAL: number},
            parent_run_id=self.spec.parent_run_id,
            run_id=run_id,
        )

    def _spans(self) -> dict[str, Any]:
        """Return when each attempt at the trial began and ended: earlier ones as they stand, and this one."""
        return {**self.trial.user_attrs.get(keys.SPANS, {}), str(self.spec.attempt): self._span}

    def on_epoch(self, report: EpochReport) -> Literal["continue", "prune", "interrupt"]:
        """Report an epoch's score, and return whether the trial goes on."""
        self.lease.check()  # before the epoch's checkpoint is written
        score, epochs_done = report.metrics[self.plan.sweep.metric], report.epoch + 1
        if math.isfinite(score) and epochs_done not in self.reported:
            report_score(self.study, self.spec.trial_id, epochs_done, score)
        if epochs_done >= report.max_epochs or self._replicated is not None:
            return "continue"  # the mean of replicates of which the poor ones are pruned would be too high
        pruner = build_pruner(self.plan.sweep.pruner, self.plan.base.trainer.max_epochs)
        return "prune" if should_prune(self.study, self.spec.trial_id, pruner) else "continue"

    def tell(self, result: RunResult) -> int:
        """Tell the study how the training ended, and return the process's exit code."""
        self.lease.check_last()
        seconds = self.trial.user_attrs.get(keys.SECONDS, 0.0) + result.seconds
        if result.status == "interrupted":
            self._span["end"] = time.time()
            self._note({keys.SECONDS: seconds, keys.SPANS: self._spans()})
            return EXIT_STOPPED
        checkpoint = {} if result.checkpoint is None else {keys.CHECKPOINT: str(result.checkpoint.resolve())}
        plain = result.metrics.get("val/accuracy_no_tta")
        noted = checkpoint if plain is None else {**checkpoint, keys.PLAIN_ACCURACY: plain}
        self._note({keys.SECONDS: seconds, keys.BEST_EPOCH: result.best_epoch, **noted})
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

    def settle(self, error: Exception) -> int:
        """End the trial as `outcomes.judge` says, or leave it to be started again; return the exit code."""
        if not isinstance(error, HarnessError):
            print(shown(traceback.format_exc()), file=sys.stderr)
        if is_out_of_memory(error) and not is_lost_worker(error):
            self._note({keys.OUT_OF_MEMORY: self._needed})
        verdict, reason = judge(error)
        if verdict == "lost":
            print(f"the trial is to be started again: {reason}", file=sys.stderr)
            return EXIT_RESTART
        return self._tell_infeasible(reason) if verdict == "infeasible" else self._tell_failed(reason)

    def _tell_infeasible(self, reason: str) -> int:
        """End the trial as pruned, with a broken constraint: a failed trial TPE ignores, and may repeat."""
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
        """Tag the MLflow run with the trial's outcome and score, by which `tracking/choice.py` ranks runs.

        Call it before the study is told. If this process dies in between, the trial is started again in the
        same run, whose tags are then overwritten.
        """
        from harness.tracking import names

        told = {} if score is None else {names.SCORE: repr(float(score))}
        for tracker in self._opened:
            tracker.set_tags({names.OUTCOME: outcome, **told})

    def _note(self, notes: Mapping[str, object]) -> None:
        """Store the notes as user attributes of the trial, in one transaction; known ones are left out."""
        known = self.trial.user_attrs
        news = {key: value for key, value in notes.items() if known.get(key) != value}
        if news:
            storage_of(self.study).set_trial_user_attrs(self.spec.trial_id, news)


def span_of_this_process() -> dict[str, object]:
    """Return when this process began, in seconds since 1970, and on which machine."""
    return {"begin": psutil.Process().create_time(), "host": platform.node()}


def is_away(error: BaseException) -> bool:
    """Return whether a later try may succeed: for every error of the run store but a missing run."""
    return isinstance(error, TrackingError) and not isinstance(error, NoSuchRunError)


def set_up_process(config: RunConfig, threads: int | None) -> None:
    """Set the number of threads of this process, and whether it keeps large blocks of memory.

    Args:
        threads: as the sweep's slots have it; None: as `trainer.threads` says. The slots were computed from
            `trainer.threads`, so they take precedence over it.
    """
    from harness.training.devices.machine import prepare_process

    prepare_process(threads or config.trainer.threads, config.trainer.keep_memory)


def _count_params_millions(config: RunConfig) -> float:
    from harness.training.costs import count_params_millions

    return count_params_millions(config)
