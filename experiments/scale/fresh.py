"""Measures what a new process spends on a study of many trials; each trial is such a process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import optuna
import psutil

from experiments.scale.simulation import prepare
from experiments.scale.worker import Job
from harness.config.compose import SweepPlan
from harness.search.database.optuna_private import add_to_cache, study_id
from harness.search.database.storage import open_storage
from harness.search.study import keys
from harness.search.study.trials import find_study, load_study_for_trial, read_rows, storage_of
from harness.search.suggest.pruners import build_pruner, report_score, should_prune
from harness.search.suggest.space import suggest

Costs = dict[str, float]  # step -> seconds of processor time; under `memory_gb`, the memory of a study
REPEATS = 3


def fresh_costs(job: Job) -> Costs:
    """Return the median costs of a few new processes, run one after another."""
    prepare()
    found = [_in_fresh_process(job) for _ in range(REPEATS)]
    return {what: statistics.median(costs[what] for costs in found) for what in found[0]}


def _in_fresh_process(job: Job) -> Costs:
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        return pool.submit(measure, job).result()


def measure(job: Job) -> Costs:
    """Return the costs of each step in this process.

    `open`, `load`, `suggest` and `report` are what a trial's process does until its first report; `look` is
    what a coordinator does each time it reads the trials.
    """
    plan, costs = SweepPlan.from_dict(job.plan), Costs()
    with _timed(costs, "open"):
        storage = open_storage(job.url, plan.sweep.lease_seconds)
    found = find_study(storage, job.name)
    assert found is not None
    number = storage.get_open_trials(study_id(found), keys.OWNER).num_trials
    study = load_study_for_trial(storage, job.name, plan.sweep, number)
    claimed = storage.create_taken_trial(study_id(study), {keys.ATTEMPT: 1})
    before = psutil.Process().memory_info().rss
    with _timed(costs, "load"):
        study.get_trials(deepcopy=False)
    costs["memory_gb"] = (psutil.Process().memory_info().rss - before) / 1e9
    trial = optuna.trial.Trial(study, claimed.trial_id)
    add_to_cache(trial)
    with _timed(costs, "suggest"):
        suggest(trial, plan.sweep.space)
    with _timed(costs, "report"):
        report_score(study, claimed.trial_id, 1, 0.5)
        should_prune(study, claimed.trial_id, build_pruner(plan.sweep.pruner, job.reports))
    study.tell(trial, 0.5)
    with _timed(costs, "look"):
        read_rows(study)
    storage_of(study).engine.dispose()
    return costs


@contextmanager
def _timed(costs: Costs, what: str) -> Iterator[None]:
    started = time.process_time()
    yield
    costs[what] = time.process_time() - started
