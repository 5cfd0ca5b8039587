"""Reads what the machine does while a run trains: its load, its memory, and the energy that it takes.

`callbacks.py` samples a `MachineLoad` after batches and logs it with each epoch. MLflow's own monitor is not
used: its thread would write past the check that a trial still belongs to this process. `nvml.py` reads GPUs.
Energy is read from the counters of the hardware, or it is "not readable"; it is never estimated.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Protocol

import psutil

POWERCAP = Path("/sys/class/powercap")  # Linux: counters of CPUs by Intel and AMD (RAPL)
PACKAGE = re.compile(r"intel-rapl:\d+")  # not its parts, intel-rapl:0:0, which the package contains
INTERVAL_S = 5.0  # between samples; a RAPL counter overflows after some minutes, and must be read before
JOULES_PER_WH = 3600.0
ENERGY = ENERGY_CPU, ENERGY_GPU = "energy_cpu_wh", "energy_gpu_wh"
SYSTEM = "system/"  # MLflow shows metrics whose names begin so on the tab "System metrics"
MEGABYTE = 1e6  # as in MLflow's names

Read = Callable[[], float | None]  # a counter in joules; None: not readable


class Gpu(Protocol):
    """A GPU, as far as its driver tells; None: it does not."""

    def energy_joules(self) -> float | None: ...

    def power_watts(self) -> float | None: ...

    def load_percent(self) -> float | None: ...

    def memory_bytes(self) -> tuple[int, int] | None:
        """Return the memory in use, by all processes, and that of the whole device."""


class EnergyCounter:
    """Adds up what a counter of energy has counted since it was made.

    Args:
        wraps_at: the joules at which it begins at 0 again; None: it never does.
    """

    def __init__(self, read: Read, wraps_at: float | None = None) -> None:
        self._read, self._wraps_at = read, wraps_at
        self._last = read()
        self._joules = 0.0

    @property
    def joules(self) -> float | None:
        """The energy up to the latest poll; None if a reading has failed."""
        return None if self._last is None else self._joules

    def poll(self) -> None:
        """Read the counter; it must be read more often than it overflows."""
        if self._last is None:
            return
        now = self._read()
        if now is not None:
            step = now - self._last
            if step < 0 and self._wraps_at is None:  # a driver was loaded anew: what it had counted is lost
                now = None
            else:
                self._joules += step if step >= 0 else step + (self._wraps_at or 0.0)
        self._last = now


def cpu_packages(powercap: Path = POWERCAP) -> list[EnergyCounter]:
    """Return a counter for each CPU package (RAPL), which holds its cores, and not the memory modules."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        name = _text(folder / "name")
        if PACKAGE.fullmatch(folder.name) and name is not None and name.startswith("package"):
            found.append(
                EnergyCounter(_reader(folder / "energy_uj"), _joules(folder / "max_energy_range_uj"))
            )
    return found


def _reader(path: Path) -> Read:
    return lambda: _joules(path)


def _joules(path: Path) -> float | None:
    text = _text(path)
    return int(text) / 1e6 if text is not None and text.isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):  # since 2020, Linux lets only root read a package's energy
        return None


class MachineLoad:
    """Samples the machine while a run trains.

    The figures are those of the whole machine and of whole GPUs, whatever else runs on them; what begins with
    `process` is of this process.

    Args:
        gpus: those that the run trains on.
    """

    def __init__(self, gpus: Sequence[Gpu] = (), powercap: Path = POWERCAP) -> None:
        self._gpus = gpus
        self._process = psutil.Process()
        self._counters = {
            ENERGY_CPU: cpu_packages(powercap),
            ENERGY_GPU: [EnergyCounter(gpu.energy_joules) for gpu in gpus],
        }
        self._samples: dict[str, list[float]] = {}
        self._due = 0.0
        self.sample()
        self._samples.clear()  # psutil's first percentages have no time that they could be of

    def describe_energy(self) -> str:
        """Return in words what of the energy is measured, and what is not."""
        sources = {ENERGY_CPU: "CPU packages (RAPL)", ENERGY_GPU: "GPUs (NVML)"}
        told = [
            f"{source}: {'measured' if name in self.energy_wh else 'not readable'}"
            for name, source in sources.items()
            if name == ENERGY_CPU or self._gpus
        ]
        return f"{', '.join(told)}; of whole devices, with whatever else ran on them, such as other trials"

    @property
    def energy_wh(self) -> dict[str, float]:
        """The energy since the beginning, in watt-hours; of what cannot be read, nothing."""
        found = {}
        for name, counters in self._counters.items():
            joules = [counter.joules for counter in counters]
            known = [value for value in joules if value is not None]
            if known and len(known) == len(joules):
                found[name] = sum(known) / JOULES_PER_WH
        return found

    def sample_if_due(self) -> None:
        """Take a sample, unless the last one is younger than `INTERVAL_S`."""
        if time.monotonic() >= self._due:
            self.sample()

    def sample(self) -> None:
        """Read everything once."""
        self._due = time.monotonic() + INTERVAL_S
        memory = psutil.virtual_memory()
        self._add("cpu_utilization_percentage", psutil.cpu_percent())
        self._add("system_memory_usage_megabytes", memory.used / MEGABYTE)
        self._add("system_memory_usage_percentage", memory.percent)
        self._add("process_cpu_percentage", self._process.cpu_percent())  # 100: one core
        self._add("process_memory_usage_megabytes", self._process.memory_info().rss / MEGABYTE)
        for place, gpu in enumerate(self._gpus):
            self._add(f"gpu_{place}_utilization_percentage", gpu.load_percent())
            self._add(f"gpu_{place}_power_usage_watts", gpu.power_watts())
            if (used := gpu.memory_bytes()) is not None:
                self._add(f"gpu_{place}_memory_usage_megabytes", used[0] / MEGABYTE)
                self._add(f"gpu_{place}_memory_usage_percentage", 100 * used[0] / used[1])
        for counters in self._counters.values():
            for counter in counters:
                counter.poll()

    def take_means(self) -> dict[str, float]:
        """Take a sample, and return the means since the last call, under MLflow's names."""
        self.sample()
        means = {SYSTEM + name: fmean(values) for name, values in self._samples.items()}
        self._samples.clear()
        return means

    def _add(self, name: str, value: float | None) -> None:
        if value is not None:
            self._samples.setdefault(name, []).append(value)
