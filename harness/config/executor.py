"""Settings of where a sweep's trials run: on this machine, on a Ray cluster, or on a Slurm cluster."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.config.base import Section
from harness.config.schema import PositiveInt


class LocalExecutorConfig(Section):
    """Processes of this machine."""

    kind: Literal["local"] = "local"
    is_remote: ClassVar[bool] = False  # whether trials may run on other machines: then SQLite is refused


class RayExecutorConfig(Section):
    """One Ray actor per trial, which runs the trial as a child process; needs the extra `[ray]`."""

    kind: Literal["ray"] = "ray"
    address: str | None = None  # of an existing cluster, such as "auto" or host:port; None = a local one
    num_gpus: Annotated[int, Field(ge=0)] | None = None  # a local cluster's; None = what the machine has

    @property
    def is_remote(self) -> bool:
        return self.address is not None


class SlurmExecutorConfig(Section):
    """Jobs of Slurm, as arrays; needs the extra `[slurm]`."""

    kind: Literal["slurm"] = "slurm"
    is_remote: ClassVar[bool] = True
    partition: str | None = None  # None = the cluster's default
    time_minutes: PositiveInt | None = None  # of one job; None = the partition's limit
    gres: str | None = None  # such as "gpu:a100:1"; None = a GPU per device of a trial, where there are GPUs
    cpus_per_task: PositiveInt | None = None  # None = the trial's threads
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    setup: list[str] = Field(default_factory=list)  # shell lines before the trial, such as module loads
    options: dict[str, str] = Field(default_factory=dict)  # other options of sbatch: {account: vision}


ExecutorConfig = Annotated[
    LocalExecutorConfig | RayExecutorConfig | SlurmExecutorConfig, Field(discriminator="kind")
]
