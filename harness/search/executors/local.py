"""Trials as processes of this machine, forked from a server that has already imported everything heavy.

Such a fork costs a tenth of a second where a fresh interpreter needs ten, and it inherits no device, no
thread pool, no database connection and no lock: the server has none.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.config.compose import SweepPlan
from harness.search import trial
from harness.search.executors import LOG, Placement
from harness.search.slots import Slots, find_slots
from harness.search.throughput import measured_slots

PRELOADED = [
    "harness.training.train",  # torch, Lightning, timm
    "harness.data.load",
    "harness.tracking.store",  # MLflow
    # What the first use of a database or a picture would import:
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "optuna.storages._rdb.models",
    "optuna.storages._rdb.storage",
    "alembic.config",
    "sqlalchemy.dialects.sqlite",
    "matplotlib.backends.backend_agg",
    "harness.search.executors.warm",
]
SERVER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # no thread pool before the fork; a trial sets its own number of threads
    "MKL_NUM_THREADS": "1",
    "HARNESS_OFFLINE": "1",  # the coordinator has the data by now; no trial tries to download them again
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for a GPU must not open it before the fork
}

RunTrial = Callable[[str], int]  # path of a spec -> exit code; importable by name


class LocalPlacement:
    """A process of this machine."""

    is_pending = False

    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    def exit_code(self) -> int | None:
        return self.process.exitcode

    def stop(self) -> None:
        if self.process.is_alive():
            self.process.terminate()

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()


class LocalExecutor:
    """Places trials on this machine.

    Args:
        run_trial: what runs in the process; the trial's own entry point by default.
    """

    def __init__(self, run_trial: RunTrial = trial.run, preload: Sequence[str] = PRELOADED) -> None:
        self._run_trial = run_trial
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def prepare(self, plan: SweepPlan) -> Slots:
        self.start_server()  # takes as long as what follows, and beside it
        return measured_slots(plan, find_slots(plan.sweep, plan.base))

    def place(self, spec_path: Path) -> LocalPlacement:
        self.start_server()
        process = self._context.Process(
            target=_run_in_child, args=(self._run_trial, str(spec_path)), name=spec_path.parent.name
        )
        process.start()
        return LocalPlacement(process)

    def wait(self, placements: Sequence[Placement], timeout_s: float) -> None:
        processes = [p.process for p in placements if isinstance(p, LocalPlacement)]
        connection.wait([process.sentinel for process in processes], timeout_s)

    def close(self) -> None:
        """Do nothing: the server ends with this process, and the next sweep of this process uses it."""

    def start_server(self) -> None:
        """Start the server of forks if it does not run; returns without waiting for its imports."""
        with _environment(SERVER_ENVIRONMENT):
            forkserver.ensure_running()


def _run_in_child(run_trial: RunTrial, spec_path: str) -> None:
    """Run the trial with its output in its own log; Ctrl-C at the terminal is for the coordinator."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _redirect_output(Path(spec_path).with_name(LOG))
    sys.exit(run_trial(spec_path))


def _redirect_output(log: Path) -> None:
    """Let also what libraries write past Python's streams go to the log."""
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
