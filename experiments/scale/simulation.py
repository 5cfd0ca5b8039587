"""Runs one simulation: worker processes on one database, their timings, and a check of the trials left."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import sqlalchemy as sa
from optuna.trial import TrialState

from experiments.scale.sampling import Meter, Usage
from experiments.scale.worker import DONE, PRELOAD, Job, Times, work
from harness.search.database.storage import RetryingStorage, is_server, open_storage
from harness.search.study.trials import find_study


@dataclass(frozen=True)
class Simulated:
    """The results of a simulation."""

    num_trials: int  # that the workers ended
    seconds: float
    kills: int
    usage: Usage
    ended: list[float]  # when each trial ended, in seconds since the start, in order
    times: Times  # step of a trial -> seconds, of every trial
    mistakes: list[str]  # in the trials that it left in the database; the report calls them the books


@dataclass
class Crew:
    """The worker processes of a simulation; one that `run` kills is replaced."""

    job: Job
    size: int
    started: int = 0
    kills: int = 0
    _workers: list[BaseProcess] = field(default_factory=list)

    def run(self, kill_every_s: float | None = None) -> None:
        """Start the workers; return when all have ended, as nothing was left to do.

        Args:
            kill_every_s: each time so many seconds have passed, a random worker is killed (SIGKILL) and
                replaced; None: no worker is.
        """
        for _ in range(self.size):
            self._start()
        next_kill = time.monotonic() + (kill_every_s or 0.0)
        while self._workers:
            patience = None if kill_every_s is None else max(0.0, next_kill - time.monotonic())
            connection.wait([worker.sentinel for worker in self._workers], patience)
            self._dismiss_ended()
            if kill_every_s is not None and time.monotonic() >= next_kill and self._workers:
                next_kill += kill_every_s
                self._replace(random.choice(self._workers))

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _start(self) -> None:
        worker = multiprocessing.get_context("forkserver").Process(target=work, args=(self.job,))
        worker.start()
        self.started += 1
        self._workers.append(worker)

    def _dismiss_ended(self) -> None:
        ended = [worker for worker in self._workers if worker.exitcode is not None]
        self._workers = [worker for worker in self._workers if worker not in ended]
        if failed := [worker.exitcode for worker in ended if worker.exitcode]:
            raise RuntimeError(f"a worker ended with exit code {failed[0]}")

    def _replace(self, worker: BaseProcess) -> None:
        worker.kill()
        worker.join()
        self._workers.remove(worker)
        self.kills += 1
        self._start()


def simulate(
    job: Job, workers: int, server: int | None = None, kill_every_s: float | None = None
) -> Simulated:
    """Run workers on an existing study, and check the trials that they leave in it.

    Args:
        server: id of the database server's first process; None if the database is a file.
    """
    storage, crew = open_storage(job.url), Crew(job, workers)
    before = _num_trials(storage, job)
    with Meter(prepare(), server, _connection_counter(storage)).running() as usage:
        started, began = time.perf_counter(), time.time()
        try:
            crew.run(kill_every_s)
        finally:
            crew.end()
        seconds = time.perf_counter() - started
    ended, times = read_times(job.folder, began)
    mistakes = find_mistakes(storage, job)
    if (left := crew.started - crew.kills - len(list(job.folder.glob(f"*{DONE}")))) > 0:
        mistakes.append(f"{left} workers left early")
    return Simulated(
        num_trials=_num_trials(storage, job) - before,
        seconds=seconds,
        kills=crew.kills,
        usage=usage,
        ended=ended,
        times=times,
        mistakes=mistakes,
    )


def prepare() -> int:
    """Start the server from which workers are forked, unless it runs already; return its process id."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()
    first = multiprocessing.get_context("forkserver").Process(target=_nothing)
    first.start()
    assert first.pid is not None
    parent = psutil.Process(first.pid).ppid()  # the kernel keeps its entry until the server reaps it
    first.join()
    return parent


def _nothing() -> None:
    time.sleep(0.2)


def read_times(folder: Path, began: float) -> tuple[list[float], Times]:
    """Return when trials ended and how long their steps took, from the files that the workers wrote."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    rows = sorted((json.loads(line) for line in lines), key=lambda row: float(row["ended"]))
    times: Times = defaultdict(list)
    for row in rows:
        for step, seconds in row["times"].items():
            times[step] += seconds
        times["ask"].append(sum(row["times"]["take"]) + sum(row["times"]["suggest"]))
    return [row["ended"] - began for row in rows], dict(times)


def find_mistakes(storage: RetryingStorage, job: Job) -> list[str]:
    """Return what is wrong with the study's trials after a simulation: an empty list if all is well."""
    study = find_study(storage, job.name)
    assert study is not None
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    checks = {
        f"{len(trials)} trials, not {job.num_trials}": len(trials) == job.num_trials,
        "numbers that are not 0, 1, 2 …": [trial.number for trial in trials] == list(range(len(trials))),
        f"{states.count(TrialState.RUNNING)} RUNNING": TrialState.RUNNING not in states,
        f"{len(trials) - len(complete)} not COMPLETE": len(complete) == len(trials),
        "a trial without all of its reports": all(
            sorted(trial.intermediate_values) == list(range(1, job.reports + 1)) for trial in complete
        ),
    }
    return [mistake for mistake, is_right in checks.items() if not is_right]


def _num_trials(storage: RetryingStorage, job: Job) -> int:
    return storage.get_n_trials(storage.get_study_id_from_name(job.name))


def _connection_counter(storage: RetryingStorage) -> Callable[[], int]:
    """Return a function that counts a server's connections, without its own; 0 for a database file."""
    if not is_server(storage.url):
        return lambda: 0
    text = "SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"

    def count() -> int:
        with storage.engine.connect() as asked:
            return int(asked.execute(sa.text(text)).scalar_one())

    return count
