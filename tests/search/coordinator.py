"""A sweep with the fake training as a command, for tests that kill or interrupt it."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.config.compose import compose_sweep
from harness.config.executor import (
    ExecutorConfig,
    LocalExecutorConfig,
    RayExecutorConfig,
    SlurmExecutorConfig,
)
from harness.search.executors import Executor
from harness.search.executors.local import LocalExecutor
from harness.search.sweep import run_sweep
from tests.search.fake_training import PRELOAD, run_trial


def main(config_dir: str, *overrides: str) -> int:
    plan = compose_sweep(overrides, Path(config_dir))
    return run_sweep(plan, executor=build_fake_executor(plan.sweep.executor)).exit_code


def build_fake_executor(config: ExecutorConfig) -> Executor:
    """Return what `build_executor` does, with the fake training in place of a trial's."""
    match config:
        case LocalExecutorConfig():
            return LocalExecutor(run_trial=run_trial, preload=PRELOAD)
        case RayExecutorConfig():
            from harness.search.executors.ray import RayExecutor

            return RayExecutor(config, module="tests.search.fake_training")
        case SlurmExecutorConfig():
            from harness.search.executors.slurm import SlurmExecutor

            return SlurmExecutor(config, module="tests.search.fake_training")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
