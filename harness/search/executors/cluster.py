"""How many trials a cluster holds at a time, and what each takes of it."""

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
    """What a trial takes of a cluster, and how many trials at a time."""

    count: int
    threads: int
    cores: float  # less than the threads where a node has fewer cores than GPUs
    num_gpus: int

    @property
    def slots(self) -> Slots:
        """Return the slots; none is pinned to a GPU, for the cluster does that."""
        return Slots(self.count, self.threads, num_gpus=0)


def divide_cluster(plan: SweepPlan, nodes: Sequence[Node], threads: int | None = None) -> TrialResources:
    """Choose what is left to `auto`: a trial for each GPU (or `devices_per_trial` of them).

    A cluster without GPUs holds on each node what the same sweep would run on that machine alone.

    Args:
        nodes: at least one.
        threads: of a trial, where the sweep leaves them to `auto`.
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
