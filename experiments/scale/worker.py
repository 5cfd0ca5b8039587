"""A simulated worker: it runs the code of real trials, with their database calls, but without training.

Workers are forked from a server that has imported this file and the modules in `PRELOAD`; torch and MLflow
are not among these.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from optuna.storages._rdb import models as _models  # noqa: F401 - its tables, configured below
from sqlalchemy.orm import configure_mappers

from harness.config.compose import SweepPlan
from harness.config.schema import RunConfig
from harness.search.database.retrying_storage import RetryingStorage
from harness.search.database.storage import open_storage
from harness.search.ownership.claims import Claim, Claims
from harness.search.study.trials import find_study
from harness.search.trial import run as trial
from harness.search.trial.attempt import Attempt
from harness.search.trial.spec import TrialSpec
from harness.tracking import Tracker
from harness.tracking.tracker import SilentTracker
from harness.training.result import Decision, EpochReport, RunResult

PRELOAD = [
    __name__,
    # What the first use of a database would import:
    "optuna.storages._rdb.storage",
    "alembic.config",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
]
configure_mappers()  # once for all forks, as the fork server of real trials does
DONE = ".done"  # suffix of the empty file that a worker makes when nothing is left to do
IDLE_S = 0.5  # between two looks of a worker that finds nothing to take

Times = dict[str, list[float]]  # step of a trial -> seconds of each repetition
OnEpoch = Callable[[EpochReport], Decision]


@dataclass(frozen=True)
class Job:
    """What every worker of a simulation does."""

    name: str  # of the sweep
    url: str
    plan: dict[str, Any]  # SweepPlan.to_dict()
    reports: int  # of one trial
    folder: Path  # for what the workers measured: one file each
    pause_s: float = 0.0  # mean pause after each report, in the place of an epoch

    @property
    def num_trials(self) -> int:
        return int(self.plan["sweep"]["num_trials"])


def work(job: Job) -> None:
    """Take and run trials until the budget is used up, and write a line of timings for each."""
    plan = SweepPlan.from_dict(job.plan)
    storage = open_storage(job.url, plan.sweep.lease_seconds)
    study = find_study(storage, job.name)
    assert study is not None
    claims = Claims(study, storage)
    log = job.folder / f"{os.getpid()}.jsonl"
    time.sleep(random.uniform(0.0, job.pause_s * job.reports))  # spread the workers over a trial's pauses
    with log.open("a", buffering=1) as lines, _no_training(storage):
        while True:
            times: Times = defaultdict(list)
            with timed(times, "take"):
                claim = claims.take(job.num_trials)
            if claim is not None:
                run_trial(job, claim, times)
                lines.write(json.dumps({"ended": time.time(), "times": times}) + "\n")
            elif claims.has_more(job.num_trials):
                time.sleep(IDLE_S)
            else:
                log.with_suffix(DONE).touch()
                return


def run_trial(job: Job, claim: Claim, times: Times) -> None:
    """Run one trial by the code of real trials, from its spec to the result that the study receives."""
    spec = TrialSpec(
        sweep_name=job.name,
        storage=job.url,
        number=claim.number,
        trial_id=claim.trial_id,
        plan=job.plan,
        data_kind="digits",
        experiment="scale",
        parent_run_id="none",
        attempt=claim.attempt,
        threads=None,
        device_indices=None,
    )
    with patch.object(trial, "Attempt", partial(TimedAttempt, times, time.perf_counter())):
        exit_code = trial.run_attempt(
            spec, job.folder, lambda: False, partial(report_epochs, times, job, claim.number)
        )
    assert exit_code == 0


class TimedAttempt(Attempt):
    """An attempt that prepares no training, opens no MLflow run, and measures how long its steps take."""

    times: Times

    def __init__(self, times: Times, placed: float, *args: Any) -> None:
        super().__init__(*args)
        object.__setattr__(self, "times", times)  # the dataclass is frozen
        times["begin"].append(time.perf_counter() - placed)

    def prepare(self) -> RunConfig:
        with timed(self.times, "suggest"):
            return self._suggest()

    def open_run(self, config: RunConfig, stop_requested: Callable[[], bool]) -> Tracker:
        return SilentTracker()

    def tell(self, result: RunResult) -> int:
        with timed(self.times, "tell"):
            return super().tell(result)


def report_epochs(
    times: Times, job: Job, number: int, config: RunConfig, *, on_epoch: OnEpoch, **_: object
) -> RunResult:
    """Stand in for training: report every epoch, and end with a random score."""
    metric = config.trainer.monitor.metric
    for epoch in range(job.reports):
        # All trials report the same curve, so the pruner is asked after each epoch but ends none.
        with timed(times, "report"):
            decision = on_epoch(EpochReport(epoch, job.reports, {metric: 0.5 + 0.01 * epoch}))
        assert decision == "continue"
        time.sleep(job.pause_s * random.uniform(0.5, 1.5))
    score = random.Random(number).random()
    return RunResult("none", "finished", score, job.reports - 1, {metric: score}, None, 0.1)


@contextmanager
def _no_training(storage: RetryingStorage) -> Iterator[None]:
    """Let trials use the worker's storage, and the base configuration, since nothing is trained."""
    with ExitStack() as patches:
        patches.enter_context(patch.object(trial, "open_storage", lambda *_, **__: storage))
        patches.enter_context(patch.object(SweepPlan, "compose_trial", lambda self, _: self.base))
        yield


@contextmanager
def timed(times: Times, step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times[step].append(time.perf_counter() - started)
