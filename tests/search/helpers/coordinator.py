"""A call of a sweep with stand-ins for its trials, as a command, for tests that kill or interrupt it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import optuna

from harness.config.compose import compose_sweep
from harness.config.executor import (
    ExecutorConfig,
    LocalExecutorConfig,
    RayExecutorConfig,
    SlurmExecutorConfig,
)
from harness.errors import HarnessError
from harness.logs import show_messages
from harness.search.coordinator import follow as standby
from harness.search.coordinator import scheduler
from harness.search.executors.base import Executor
from harness.search.executors.local import LocalExecutor, RunTrial
from harness.search.sweep import run_sweep
from tests.search.helpers.behaviour import Behaviour
from tests.search.helpers.fake_training import PRELOAD, run_trial

LOOK_S = 0.3  # of waiting loops: tests wait for others more often than people do


def main(config_dir: str, *overrides: str, run: RunTrial = run_trial) -> int:
    """Do what `harness sweep` does, with its exit codes."""
    scheduler.POLL_S = standby.LOOK_S = LOOK_S
    show_messages()
    try:
        plan = compose_sweep(overrides, Path(config_dir))
        behaviour = Behaviour.of(Path(plan.base.tracking.dir))
        behaviour.apply()
        if behaviour.die_noting is not None:
            _die_noting(behaviour.die_noting)
        return run_sweep(plan, executor=build_fake_executor(plan.sweep.executor, run)).exit_code
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def build_fake_executor(config: ExecutorConfig, run: RunTrial = run_trial) -> Executor:
    """Return what `build_executor` does, with the fake training in place of a trial's."""
    match config:
        case LocalExecutorConfig():
            return LocalExecutor(run_trial=run, preload=PRELOAD)
        case RayExecutorConfig():
            from harness.search.executors.ray import RayExecutor

            return RayExecutor(config, module="tests.search.helpers.fake_training")
        case SlurmExecutorConfig():
            from harness.search.executors.slurm import SlurmExecutor

            return SlurmExecutor(config, module="tests.search.helpers.fake_training")


def _die_noting(fatal: str) -> None:
    note = optuna.Study.set_user_attr

    def set_user_attr(study: optuna.Study, key: str, value: object) -> None:
        if key == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        note(study, key, value)

    optuna.Study.set_user_attr = set_user_attr  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
