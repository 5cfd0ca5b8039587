"""Reads load, memory, power and energy of NVIDIA's GPUs from their driver, for `machine_load.py`.

The functions are those of NVIDIA's own package for NVML, `pynvml`. What a driver or a device does not tell is
None.
"""

from __future__ import annotations

from typing import Any

import pynvml
import torch


class NvmlGpu:
    """A GPU, see `harness.training.devices.machine_load.Gpu`.

    Args:
        uuid: as torch and NVML name it.
        nvml: the module `pynvml`, or what stands for it in a test.
    """

    def __init__(self, uuid: str, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        try:
            nvml.nvmlInit()  # counted by the library: calling it again costs nothing
            self._device = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:  # no driver, or it does not know this device
            self._device = None

    def energy_joules(self) -> float | None:
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def power_watts(self) -> float | None:
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def load_percent(self) -> float | None:
        load = self._ask("nvmlDeviceGetUtilizationRates")
        return None if load is None else float(load.gpu)

    def memory_bytes(self) -> tuple[int, int] | None:
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else (memory.used, memory.total)

    def _ask(self, function: str) -> Any:
        if self._device is None:
            return None
        try:
            return getattr(self._nvml, function)(self._device)
        except pynvml.NVMLError:  # this device does not tell
            return None


def gpus_of(device: torch.device, count: int) -> list[NvmlGpu]:
    """Return the GPUs that a run trains on; empty on other devices.

    Args:
        count: how many devices the run has; several are the first ones that this process sees.
    """
    if device.type != "cuda":
        return []
    places = range(count) if count > 1 else [device.index or 0]
    # By their UUIDs, because CUDA_VISIBLE_DEVICES renumbers GPUs for torch and not for NVML.
    return [NvmlGpu(str(torch.cuda.get_device_properties(place).uuid)) for place in places]
