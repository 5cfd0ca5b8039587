"""Decides how many trials run at a time, and which GPUs and how many CPU threads each one gets.

The executors call this before the first trial. On a CPU, if slots and threads are `auto`, `measure_slots.py`
measures the best numbers instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from harness.config.schema import RunConfig
from harness.config.sweep import SweepConfig

MAX_AUTO_SLOTS = 4  # on a CPU: beyond it, trials wait for memory rather than for cores


@dataclass(frozen=True)
class Measurement:
    """Measured throughput of `slots` concurrent trials."""

    slots: int
    threads: int  # of each
    images_per_second: float  # of all together
    memory: float  # bytes, of each trial's training step
    cpu_share: float = 1.0  # share of the cores' time that we got; below 1 if others used them too


@dataclass(frozen=True)
class Slots:
    """How many trials one machine trains at a time, and the resources of each."""

    count: int
    threads: int  # CPU threads of each trial
    num_gpus: int  # over which the slots are spread; 0: trials are not pinned to GPUs
    warning: str | None = None
    measured: tuple[Measurement, ...] = ()  # all candidates, if the choice was measured

    def device_indices(self, slot: int, per_trial: int = 1) -> list[int] | None:
        """Return the indices of a slot's GPUs; they are adjacent if a trial takes several."""
        if not self.num_gpus:
            return None
        first = slot % (self.num_gpus // per_trial) * per_trial
        return list(range(first, first + per_trial))


def find_slots(sweep: SweepConfig, base: RunConfig) -> Slots:
    """Return this machine's slots for a sweep.

    Raises:
        ConfigError: the configuration asks for a device that this machine lacks.
    """
    from harness.tracking.environment import available_cores
    from harness.training.devices.machine import check_devices, resolve_machine

    device = resolve_machine(base.trainer).device.type
    num_gpus = 0
    if device == "cuda":
        import torch

        num_gpus = count_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ""), torch.cuda.device_count())
        if num_gpus > torch.cuda.device_count():
            check_devices(sweep.devices_per_trial, device, 1)  # CUDA shows a process one MIG device
    return resolve_slots(sweep, base.trainer.threads, available_cores(), device, num_gpus)


def count_gpus(visible: str, shown: int) -> int:
    """Return the number of GPUs, or of MIG devices, that trials can use.

    CUDA shows a process at most one MIG device, although CUDA_VISIBLE_DEVICES may list several. So the MIG
    devices are counted in that variable, and each trial gets one.

    Args:
        visible: CUDA_VISIBLE_DEVICES.
        shown: how many GPUs CUDA shows this process.
    """
    parts = [name for name in visible.split(",") if name.strip().startswith("MIG-")]
    return max(shown, len(parts)) if shown else 0


def resolve_slots(
    sweep: SweepConfig, trainer_threads: int | None, cores: int, device: str, num_gpus: int
) -> Slots:
    """Return the slots. What is `auto` is chosen so that slots × threads does not exceed the cores.

    Raises:
        ConfigError: a trial needs more devices than there are.
    """
    from harness.training.devices.machine import check_devices

    together = sweep.devices_per_trial
    check_devices(together, device, num_gpus)
    fixed_slots = None if sweep.slots == "auto" else sweep.slots
    fixed_threads = trainer_threads if sweep.threads_per_trial == "auto" else sweep.threads_per_trial
    if fixed_slots and fixed_threads:
        return Slots(fixed_slots, fixed_threads, num_gpus, _overload(fixed_slots, fixed_threads, cores))
    if fixed_slots:
        count = min(fixed_slots, cores)
        lowered = f"sweep.slots={fixed_slots} lowered to {count}, the number of cores"
        threads = max(1, cores // count)
        return Slots(count, threads, num_gpus, lowered if count < fixed_slots else None)
    wanted = {"cuda": num_gpus // together, "mps": 1}.get(device, MAX_AUTO_SLOTS)
    count = max(1, min(wanted, cores // max(fixed_threads or 1, together)))
    threads = fixed_threads or max(1, cores // count)
    warning = _overload(count, threads, cores) or _idle(num_gpus, together, count, threads)
    return Slots(count, threads, num_gpus, warning)


def _idle(num_gpus: int, together: int, count: int, threads: int) -> str | None:
    """Return a warning about GPUs that no trial gets; None if all are used."""
    idle = f"{num_gpus - count * together} of {num_gpus} GPUs stay idle"
    if count * together >= num_gpus:
        return None
    if count == num_gpus // together:
        return f"{idle}: sweep.devices_per_trial={together} does not divide them"
    return (
        f"{idle}, as there are cores for {count} trial(s) of {threads} thread(s) at a time: lower "
        "sweep.threads_per_trial, or set sweep.slots too"
    )


def _overload(count: int, threads: int, cores: int) -> str | None:
    if count * threads <= cores:
        return None
    return f"{count} trials × {threads} threads on {cores} cores will run slower than fewer of them"
