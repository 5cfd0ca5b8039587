"""Builds the executor that `sweep.executor` names; Ray and submitit are imported only if they are needed."""

from __future__ import annotations

from harness.config.executor import (
    ExecutorConfig,
    LocalExecutorConfig,
    RayExecutorConfig,
    SlurmExecutorConfig,
)
from harness.errors import ConfigError
from harness.search.executors.base import Executor


def build_executor(config: ExecutorConfig) -> Executor:
    """Return the executor that starts a sweep's trials.

    Raises:
        ConfigError: a package that this kind needs is not installed.
    """
    try:
        match config:
            case LocalExecutorConfig():
                from harness.search.executors.local import LocalExecutor

                return LocalExecutor()
            case RayExecutorConfig():
                from harness.search.executors.ray import RayExecutor

                return RayExecutor(config)
            case SlurmExecutorConfig():
                from harness.search.executors.slurm import SlurmExecutor

                return SlurmExecutor(config)
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "submitit"):
            raise
        raise ConfigError(
            f"sweep.executor.kind={config.kind} needs the package {error.name}: "
            f"make setup-cluster (or pip install 'harness[{config.kind}]')"
        ) from None
