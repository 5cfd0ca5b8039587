"""Reads load, memory, power and energy of NVIDIA's GPUs from their driver (NVML), for `machine_load.py`.

The five functions are called through ctypes, as torch does for its own use of NVML: their package,
nvidia-ml-py, is not among our dependencies. What a driver or a device does not tell is None.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

LIBRARY = "libnvidia-ml.so.1"


class _Load(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class NvmlGpu:
    """A GPU, see `harness.training.machine_load.Gpu`.

    Args:
        library: None: there is no NVML on this machine, and nothing can be read.
    """

    def __init__(self, library: ctypes.CDLL | None, uuid: str) -> None:
        self._library, self._device = library, ctypes.c_void_p()
        find = None if library is None else library.nvmlDeviceGetHandleByUUID
        self._is_known = find is not None and find(uuid.encode(), ctypes.byref(self._device)) == 0

    def energy_joules(self) -> float | None:
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        return None if millijoules is None else millijoules.value / 1000

    def power_watts(self) -> float | None:
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        return None if milliwatts is None else milliwatts.value / 1000

    def load_percent(self) -> float | None:
        load = self._ask("nvmlDeviceGetUtilizationRates", _Load())
        return None if load is None else float(load.gpu)

    def memory_bytes(self) -> tuple[int, int] | None:
        memory = self._ask("nvmlDeviceGetMemoryInfo", _Memory())
        return None if memory is None else (memory.used, memory.total)

    def _ask(self, function: str, answer: Any) -> Any:
        """Let a function of the library fill in a value; None: it cannot."""
        asked = getattr(self._library, function, None) if self._is_known else None
        return answer if asked is not None and asked(self._device, ctypes.byref(answer)) == 0 else None


def gpus_of(device: torch.device, count: int) -> list[NvmlGpu]:
    """Return the GPUs that a run trains on; empty on other devices.

    Args:
        count: how many devices the run has; several are the first ones that this process sees.
    """
    if device.type != "cuda":
        return []
    library = _open_library()
    places = range(count) if count > 1 else [device.index or 0]
    # By their UUIDs, because CUDA_VISIBLE_DEVICES renumbers GPUs for torch and not for NVML.
    return [NvmlGpu(library, f"GPU-{torch.cuda.get_device_properties(place).uuid}") for place in places]


def _open_library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(LIBRARY)
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None
