"""Runs a trial's command line as a child of a Ray actor or of a Slurm job.

The actor and the job import this file on their node, so it imports little beside the standard library.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from harness.search.executors.base import LOG, TRIAL_MODULE

# Beginnings of names of variables that are copied from the coordinator to a trial on another machine.
PASSED_ON = ("DATA_DIR", "CACHE_DIR", "MLRUNS_DIR", "MLFLOW_", "HARNESS_", "PG")
PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


class TrialProcess:
    """`python -m harness.search.trial SPEC` as a child, in a process group of its own.

    Args:
        spec_path: absolute; the output is appended to `trial.log` beside it.
        cwd: the working directory, to which the configuration's relative paths refer.
        environment: set on top of this process's own.
        orphan_signal: the signal that the child gets if this process dies (on Linux).
    """

    def __init__(
        self,
        spec_path: str,
        cwd: str,
        environment: Mapping[str, str],
        module: str = TRIAL_MODULE,
        orphan_signal: int = signal.SIGTERM,
    ) -> None:
        self._command = [sys.executable, "-m", module, spec_path]
        self._log = Path(spec_path).with_name(LOG)
        self._cwd, self._environment = cwd, {**os.environ, **environment}
        self._orphan_signal = orphan_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = False

    def run(self) -> int:
        """Return the exit code of the trial, once it has ended (negative: by that signal)."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_dying_with_parent(self._orphan_signal),  # noqa: PLW1509 - see there
            )
        if self._asked_to_stop:  # `stop` was called before the process existed
            self.stop()
        return self._process.wait()

    def stop(self) -> None:
        """Ask the trial to stop at the end of its batch."""
        self._asked_to_stop = True
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the trial and its children at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def trial_environment() -> dict[str, str]:
    """Return the variables of this process that a trial needs, on another machine too."""
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    return passed_on | {"HARNESS_OFFLINE": "1"}  # the coordinator has the data by now: no trial downloads


def save_environment(spec_path: Path) -> str:
    """Write the variables that a trial needs to a file beside its spec that only this user can read.

    They may hold passwords (PGPASSWORD, MLFLOW_TRACKING_URI), which must not stand in a job's own files.
    """
    path = spec_path.with_suffix(".environment.json")
    path.touch(mode=0o600)
    path.write_text(json.dumps(trial_environment()), encoding="utf-8")
    return str(path)


def run_in_job(spec_path: str, cwd: str, environment_path: str, module: str = TRIAL_MODULE) -> int:
    """Run a trial within a batch job. A SIGTERM to the job is passed on; the trial dies with the job.

    Returns:
        The trial's exit code.
    """
    environment = json.loads(Path(environment_path).read_text(encoding="utf-8"))
    process = TrialProcess(spec_path, cwd, environment, module, orphan_signal=signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda number, frame: process.stop())
    return process.run()


def _dying_with_parent(number: int) -> Callable[[], None] | None:
    """Return a function for the child to call, after which Linux signals it when its parent dies."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        # Only these two system calls: the fork may have copied a lock that another thread held, and code that
        # waits for such a lock would hang forever.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a Ray worker has some blocked
        prctl(PR_SET_PDEATHSIG, number)

    return before_exec
