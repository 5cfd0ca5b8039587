"""Runs trials as jobs of Slurm, submitted as arrays by submitit. All nodes must share the folder of runs.

Jobs are submitted with `--no-requeue`. If one is preempted, runs out of time or loses its node, the
coordinator counts that as a death of the trial's process and starts the trial again.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from harness.config.compose import SweepPlan
from harness.config.executor import SlurmExecutorConfig
from harness.errors import ConfigError, SweepError
from harness.search.coordinator.slots import Slots
from harness.search.executors.base import EXIT_VANISHED, LOG, TRIAL_MODULE, Placement
from harness.search.executors.child_process import run_in_job, save_environment
from harness.search.executors.cluster import Node, TrialResources, divide_cluster
from harness.search.trial.exit_codes import EXIT_STOPPED

NOT_STARTED = ("PENDING", "CONFIGURING")
QUEUE_EVERY_S = 5.0  # how often Slurm's controller is asked, whatever the number of jobs
LOOK_EVERY_S = 0.2
# How long to wait for the result file of a job that has left the queue: on a shared file system, a file that
# another machine has written may appear late.
LOST_AFTER_S = 20.0
COMMAND_TIMEOUT_S = 15.0
OUT_OF_ORDER = ("down", "drain", "fail", "inval", "unknown")  # states that take no jobs begin so
GPUS = re.compile(r"\bgpu:(?:[^:,(]+:)?(\d+)")  # gpu:4, or gpu:a100:4(S:0-1)


class SlurmPlacement:
    """A job, once `wait` has submitted it."""

    def __init__(self, spec_path: Path) -> None:
        self.spec_path = spec_path
        self.job: Any = None
        self.state: str | None = "PENDING"  # as last seen; None = not in the queue
        self._gone_since: float | None = None
        self._asked_to_end: int | None = None  # exit code for a job that was asked to end and left none
        self._exit_code: int | None = None

    @property
    def is_pending(self) -> bool:
        return self.exit_code() is None and self.state in NOT_STARTED

    def exit_code(self) -> int | None:
        if self._exit_code is None:
            self._exit_code = self._find_exit_code()
        return self._exit_code

    def stop(self) -> None:
        self._end(EXIT_STOPPED, signal.SIGTERM)

    def kill(self) -> None:
        self._end(EXIT_VANISHED, signal.SIGKILL)

    def see(self, state: str | None) -> None:
        """Store the job's state in the queue; None if it is not there."""
        self.state = state
        self._gone_since = None if state else self._gone_since or time.monotonic()

    def _end(self, exit_code: int, number: int) -> None:
        """Cancel the job if it has not begun; else signal its batch process (`run_in_job`).

        A plain scancel would send SIGTERM to every process of the trial, and kill them only half a minute
        later.
        """
        self._asked_to_end = exit_code
        if self.job is None:
            self._exit_code = exit_code
        elif self.exit_code() is None:
            _ask("scancel", "--state=PENDING", self.job.job_id)
            _ask("scancel", "--batch", f"--signal={signal.Signals(number).name[3:]}", self.job.job_id)

    def _find_exit_code(self) -> int | None:
        if self.job is None:
            return None
        if self.job.paths.result_pickle.exists():
            return self._read_exit_code()
        if self._gone_since is None:
            return None
        if self._asked_to_end is not None:
            return self._asked_to_end
        if time.monotonic() - self._gone_since < LOST_AFTER_S:
            return None
        self._note(f"Slurm's job {self.job.job_id} ended without an exit code: see {self.job.paths.stderr}")
        return EXIT_VANISHED

    def _read_exit_code(self) -> int:
        try:
            return int(self.job.result())
        except FailedJobError as error:  # the trial could not be started
            self._note(str(error))
            return 1

    def _note(self, line: str) -> None:
        with self.spec_path.with_name(LOG).open("a", encoding="utf-8") as log:
            log.write(line + "\n")


class SlurmExecutor:
    """Submits trials to Slurm's queue; those of one turn of the scheduler's loop form one job array.

    Args:
        module: what `python -m` runs with a spec.
    """

    def __init__(self, config: SlurmExecutorConfig, module: str = TRIAL_MODULE) -> None:
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "sweep.executor.kind=slurm needs Slurm's commands: there is no sbatch on the PATH"
            )
        self._config, self._module = config, module
        self._resources, self._grace_s = TrialResources(1, 1, 1, 0), 60.0
        self._unsubmitted: list[SlurmPlacement] = []
        self._asked_at = -math.inf

    def prepare(self, plan: SweepPlan) -> Slots:
        nodes = _find_nodes(self._config.partition)
        self._resources = divide_cluster(plan, nodes, self._config.cpus_per_task)
        self._grace_s = plan.sweep.grace_seconds
        return self._resources.slots

    def place(self, spec_path: Path) -> SlurmPlacement:
        """Return a placement; the next `wait` submits it, together with the others placed by then."""
        placement = SlurmPlacement(spec_path)
        self._unsubmitted.append(placement)
        return placement

    def wait(self, placements: Sequence[Placement], timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        self._submit()
        jobs = [placement for placement in placements if isinstance(placement, SlurmPlacement)]
        while True:
            if time.monotonic() - self._asked_at >= QUEUE_EVERY_S:
                self._look_at_queue(jobs)
            left = until - time.monotonic()
            if left <= 0 or any(job.exit_code() is not None for job in jobs):
                return
            time.sleep(min(left, LOOK_EVERY_S))

    def close(self) -> None:
        """Do nothing: jobs outlive the coordinator, and a later one reads their results from the database."""

    def _submit(self) -> None:
        placements = [placement for placement in self._unsubmitted if placement.exit_code() is None]
        self._unsubmitted = []
        if not placements:
            return
        executor = self._build_submitter(placements[0].spec_path.parents[1])
        cwd = str(Path.cwd())
        try:
            with executor.batch():
                jobs = [
                    executor.submit(run_in_job, str(path), cwd, save_environment(path), self._module)
                    for path in (placement.spec_path for placement in placements)
                ]
        except (FailedJobError, FailedSubmissionError) as error:
            raise SweepError(f"Slurm refuses the job: {_last_line(error)}") from error
        for placement, job in zip(placements, jobs, strict=True):
            placement.job = job

    def _build_submitter(self, sweep_folder: Path) -> submitit.SlurmExecutor:
        config, resources = self._config, self._resources
        submitter = submitit.SlurmExecutor(
            sweep_folder / "slurm",
            python=f"exec {shlex.quote(sys.executable)}",  # exec: Slurm signals the batch shell
        )
        gpus = f"gpu:{resources.num_gpus}" if resources.num_gpus else None
        submitter.update_parameters(
            job_name=_job_name(sweep_folder),
            partition=config.partition,
            time=config.time_minutes,
            gres=config.gres or gpus,
            cpus_per_task=config.cpus_per_task or resources.threads,
            mem=None if config.memory_gb is None else f"{math.ceil(config.memory_gb * 1024)}M",
            setup=config.setup or None,
            use_srun=False,
            wckey=None,
            additional_parameters={
                "no-requeue": True,
                "signal": f"B:TERM@{math.ceil(self._grace_s)}",  # SIGTERM, this long before the time limit
                **config.options,
            },
        )
        return submitter

    def _look_at_queue(self, jobs: Sequence[SlurmPlacement]) -> None:
        """Ask Slurm's controller about all jobs at once; if it does not answer, keep the known states."""
        names = {_job_name(placement.spec_path.parents[1]) for placement in jobs}
        query = [f"--name={','.join(sorted(names))}", "--me", "--array"]
        answer = _ask("squeue", "--noheader", "--format=%i %T", *query)
        self._asked_at = time.monotonic()
        if answer is None:
            return
        states = dict(line.split() for line in answer.splitlines())
        for placement in jobs:
            if placement.job is not None:
                placement.see(states.get(placement.job.job_id))


def _find_nodes(partition: str | None) -> list[Node]:
    """Return the nodes of a partition that take jobs.

    Raises:
        ConfigError: there are none.
        SweepError: Slurm does not answer.
    """
    chosen = [] if partition is None else [f"--partition={partition}"]
    answer = _ask("sinfo", "--noheader", "--Node", "--format=%P %a %T %c %G", *chosen)
    if answer is None:
        raise SweepError("Slurm does not answer: try sinfo")
    rows = [line.split(maxsplit=4) for line in answer.splitlines()]
    rows = [row for row in rows if partition is not None or row[0].endswith("*")]  # * marks the default
    rows = [row for row in rows if row[1] == "up" and not row[2].startswith(OUT_OF_ORDER)]
    if not rows:
        raise ConfigError(f"no node of Slurm's {partition or 'default'} partition takes jobs: see sinfo")
    return [Node(int(cores), sum(map(int, GPUS.findall(gres)))) for *_, cores, gres in rows]


def _ask(*command: str) -> str | None:
    """Return what a command of Slurm prints, None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _job_name(sweep_folder: Path) -> str:
    return f"harness-{sweep_folder.name}"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -=")]
    return lines[-1] if lines else type(error).__name__
