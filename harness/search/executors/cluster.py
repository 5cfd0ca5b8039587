"""Decides how many trials a cluster runs at a time, and the cores, threads and GPUs of each.

`ray.py` and `slurm.py` call `divide_cluster` with the nodes that they find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.config.compose import SweepPlan
from harness.search.coordinator.slots import Slots, resolve_slots


@dataclass(frozen=True)
class Node:
    """One machine of a cluster."""

    cores: int
    num_gpus: int


@dataclass(frozen=True)
class TrialResources:
    """How many trials a cluster runs at a time, and the resources of each."""

    count: int
    threads: int
    cores: float  # to reserve; fewer than the threads if a node has too few cores for its GPUs
    num_gpus: int

    @property
    def slots(self) -> Slots:
        """Return the slots; none is pinned to a GPU, because the cluster assigns GPUs."""
        return Slots(self.count, self.threads, num_gpus=0)


def divide_cluster(plan: SweepPlan, nodes: Sequence[Node], threads: int | None = None) -> TrialResources:
    """Return the resources. With `sweep.slots=auto`, one trial runs for every `devices_per_trial` GPUs.

    On a cluster without GPUs, each node runs as many trials as the same sweep would on that machine alone.

    Args:
        nodes: at least one.
        threads: of each trial, if the configuration does not set them; None: computed from the cores.
    """
    sweep, trainer = plan.sweep, plan.base.trainer
    asked = trainer.threads if sweep.threads_per_trial == "auto" else sweep.threads_per_trial
    threads = asked or threads
    devices = sweep.devices_per_trial
    with_gpus = [node for node in nodes if node.num_gpus >= devices and trainer.device != "cpu"]
    if with_gpus:
        fitting = [node.num_gpus // devices for node in with_gpus]
        cores = min(node.cores / count for node, count in zip(with_gpus, fitting, strict=True))
        threads = threads or max(1, int(cores))
        resources = TrialResources(sum(fitting), threads, min(threads, cores), devices)
    else:
        alone = sweep.model_copy(update={"slots": "auto"})
        slots = [resolve_slots(alone, threads, node.cores, "cpu", num_gpus=0) for node in nodes]
        threads = min(slot.threads for slot in slots)
        resources = TrialResources(sum(slot.count for slot in slots), threads, threads, 0)
    if sweep.slots == "auto":
        return resources
    return TrialResources(sweep.slots, resources.threads, resources.cores, resources.num_gpus)
