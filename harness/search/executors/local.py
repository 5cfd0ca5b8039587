"""Runs trials as processes of this machine, from a fork server that has imported torch, MLflow and Optuna.

Forking takes 0.1 s, starting a new interpreter 10 s. The fork server opens no device, thread pool, database
connection or lock, so the trials' processes inherit none.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.config.compose import SweepPlan
from harness.fork_server import start_fork_server
from harness.search.coordinator.measure_slots import measured_slots
from harness.search.coordinator.slots import Slots, find_slots
from harness.search.executors.base import LOG, Placement
from harness.search.executors.child_process import trial_environment
from harness.search.trial import run as trial
from harness.search.trial.exit_codes import EXIT_STOPPED, EXIT_UNAVAILABLE
from harness.signals import leave_to_parent

PRELOADED = [
    "harness.training.train",  # torch, Lightning, timm
    "harness.data.load",
    "harness.tracking.store",  # MLflow
    # What the first use of a database or a figure would import:
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "optuna.storages._rdb.models",
    "optuna.storages._rdb.storage",
    "alembic.config",
    "sqlalchemy.dialects.sqlite",
    "matplotlib.backends.backend_agg",
    "harness.search.executors.preload",
]
SERVER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # no thread pool before the fork; a trial sets its own number of threads
    "MKL_NUM_THREADS": "1",
    "HARNESS_OFFLINE": "1",  # the coordinator has the data by now; no trial tries to download them again
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for a GPU must not open it before the fork
}
LOOK_S = 0.1  # how often to look at a trial whose process has not begun

RunTrial = Callable[[str], int]  # path of a spec -> exit code; importable by name


class LocalPlacement:
    """A process of this machine; it is pending until the fork server has finished its imports.

    The imports take seconds, or a minute from a cold disk. A thread waits for them, so that the scheduler
    does not have to.
    """

    def __init__(self, process: BaseProcess, log: Path) -> None:
        self.process = process
        self.has_begun = False
        self._log = log
        self._end: int | None = None  # the exit code, if the process was cancelled or could not be started
        self._state = threading.Lock()
        threading.Thread(target=self._begin, name=process.name, daemon=True).start()

    @property
    def is_pending(self) -> bool:
        return not self.has_begun and self._end is None

    def exit_code(self) -> int | None:
        if self._end is not None:
            return self._end
        return self.process.exitcode if self.has_begun else None

    def stop(self) -> None:
        if not self._is_withdrawn(EXIT_STOPPED) and self.process.is_alive():
            self.process.terminate()

    def kill(self) -> None:
        if not self._is_withdrawn(-signal.SIGKILL) and self.process.is_alive():
            self.process.kill()

    def _is_withdrawn(self, end: int) -> bool:
        """Cancel the process if it has not begun; return whether it is cancelled, now or earlier."""
        with self._state:
            if self.is_pending:
                self._end = end
            return self._end is not None

    def _begin(self) -> None:
        try:
            self.process.start()
        except (EOFError, OSError) as error:
            with self._log.open("a", encoding="utf-8") as log:
                print(f"no process could be started: the server of forks has ended ({error!r})", file=log)
            self._is_withdrawn(EXIT_UNAVAILABLE)
            return
        with self._state:
            self.has_begun = self._end is None
        if not self.has_begun:
            self.process.kill()


class LocalExecutor:
    """Places trials on this machine.

    Args:
        run_trial: called in the process with the path of a spec; by default `trial.run.run`.
    """

    def __init__(self, run_trial: RunTrial = trial.run, preload: Sequence[str] = PRELOADED) -> None:
        self._run_trial = run_trial
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def prepare(self, plan: SweepPlan) -> Slots:
        self.start_server()  # it imports while the slots are measured
        return measured_slots(plan, find_slots(plan.sweep, plan.base))

    def place(self, spec_path: Path) -> LocalPlacement:
        self.start_server()
        process = self._context.Process(
            target=_run_in_child,
            args=(self._run_trial, str(spec_path), str(Path.cwd()), trial_environment()),
            name=spec_path.parent.name,
        )
        return LocalPlacement(process, spec_path.with_name(LOG))

    def wait(self, placements: Sequence[Placement], timeout_s: float) -> None:
        local = [placement for placement in placements if isinstance(placement, LocalPlacement)]
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0 and all(one.exit_code() is None for one in local):
            running = [placement.process.sentinel for placement in local if placement.has_begun]
            connection.wait(running, left if len(running) == len(local) else min(left, LOOK_S))

    def close(self) -> None:
        """Do nothing: the fork server ends with this process, whose next sweep uses it again."""

    def start_server(self) -> None:
        """Start the fork server if it does not run; return without waiting for its imports."""
        with _environment(SERVER_ENVIRONMENT):
            start_fork_server()


def _run_in_child(run_trial: RunTrial, spec_path: str, cwd: str, environment: Mapping[str, str]) -> None:
    """Run the trial with its output in its own log. Ctrl-C at the terminal is left to the coordinator.

    Args:
        cwd: the coordinator's working directory, to which the configuration's relative paths refer. The fork
            server may have another one: where an earlier sweep of the same Python process began.
        environment: set on top of the fork server's, which may be as old.
    """
    leave_to_parent()
    os.chdir(cwd)
    os.environ.update(environment)
    _redirect_output(Path(spec_path).with_name(LOG))
    sys.exit(run_trial(spec_path))


def _redirect_output(log: Path) -> None:
    """Send standard output and error to the log, also what C libraries write past Python's streams."""
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a process that is started within."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
