"""Load and energy of the machine: counters on made-up trees, GPUs that are handed in, a run that resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from harness.config.schema import RunConfig, TrainerConfig
from harness.training.callbacks import EpochRecorder
from harness.training.devices.machine_load import ENERGY_CPU, ENERGY_GPU, EnergyCounter, MachineLoad
from harness.training.devices.nvml import NvmlGpu
from tests.helpers.recording_tracker import RecordingTracker

WRAPS_AT = 1_000_000_000  # microjoules


class Powercap:
    """A made-up /sys/class/powercap."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder, name in (
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:1", "package-1"),
            ("intel-rapl:2", "psys"),
            ("intel-rapl-mmio:0", "package-0"),
        ):
            (root / folder).mkdir()
            (root / folder / "name").write_text(f"{name}\n")
            (root / folder / "max_energy_range_uj").write_text(f"{WRAPS_AT}\n")
            self.set(folder, 900_000_000)

    def set(self, folder: str, microjoules: int) -> None:
        (self.root / folder / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    root = tmp_path / "powercap"
    root.mkdir()
    return Powercap(root)


class FakeGpu:
    joules: float | None = 5000.0

    def energy_joules(self) -> float | None:
        return self.joules

    def power_watts(self) -> float | None:
        return 250.0

    def load_percent(self) -> float | None:
        return None  # this one does not tell

    def memory_bytes(self) -> tuple[int, int] | None:
        return 2_000_000_000, 8_000_000_000


def test_packages_are_added_up_once_and_their_counters_may_overflow(powercap: Powercap) -> None:
    gpu = FakeGpu()
    load = MachineLoad([gpu], powercap.root)
    for folder in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        powercap.set(folder, 980_000_000)  # 80 J
    load.sample()
    powercap.set("intel-rapl:0", 10_000_000)  # 30 J more, over the highest value
    powercap.set("intel-rapl:1", 970_000_000)  # 70 J
    gpu.joules = 8600.0
    means = load.take_means()
    assert load.energy_wh == pytest.approx({ENERGY_CPU: 180 / 3600, ENERGY_GPU: 1.0})
    assert means["system/gpu_0_power_usage_watts"] == 250
    assert means["system/gpu_0_memory_usage_percentage"] == 25
    assert "system/gpu_0_utilization_percentage" not in means
    assert means["system/process_memory_usage_megabytes"] > 50
    assert 0 <= means["system/cpu_utilization_percentage"] <= 100
    assert "CPU packages (RAPL): measured, GPUs (NVML): measured; of whole devices" in load.describe_energy()


def test_what_cannot_be_read_is_not_guessed(powercap: Powercap, tmp_path: Path) -> None:
    gpu = FakeGpu()
    load = MachineLoad([gpu], powercap.root)
    (powercap.root / "intel-rapl:1" / "energy_uj").unlink()  # one of two packages
    gpu.joules = 10.0  # its driver began anew
    load.sample()
    powercap.set("intel-rapl:1", 999_000_000)
    load.sample()
    assert load.energy_wh == {}
    assert "(RAPL): not readable, GPUs (NVML): not readable" in load.describe_energy()
    assert MachineLoad(powercap=tmp_path / "none").energy_wh == {}
    assert "GPU" not in MachineLoad(powercap=tmp_path / "none").describe_energy()
    assert EnergyCounter(lambda: None).joules is None


def nvml_of_a_gpu_that_does_not_count_its_energy() -> SimpleNamespace:
    def raise_error(code: int) -> None:
        raise pynvml.NVMLError(code)

    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: (
            uuid if uuid == "GPU-known" else raise_error(pynvml.NVML_ERROR_NOT_FOUND)
        ),
        nvmlDeviceGetTotalEnergyConsumption=lambda device: raise_error(pynvml.NVML_ERROR_NOT_SUPPORTED),
        nvmlDeviceGetPowerUsage=lambda device: 61_500,
        nvmlDeviceGetUtilizationRates=lambda device: SimpleNamespace(gpu=87, memory=12),
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(total=80, free=30, used=50),
    )


def test_a_gpu_tells_what_its_driver_tells_and_nothing_else() -> None:
    gpu = NvmlGpu("known", nvml_of_a_gpu_that_does_not_count_its_energy())
    assert (gpu.power_watts(), gpu.load_percent(), gpu.memory_bytes()) == (61.5, 87.0, (50, 80))
    assert gpu.energy_joules() is None
    unknown = NvmlGpu("another", nvml_of_a_gpu_that_does_not_count_its_energy())
    assert (unknown.power_watts(), unknown.load_percent(), unknown.memory_bytes()) == (None, None, None)


def test_a_resumed_run_goes_on_counting_and_one_that_was_not_measured_does_not(powercap: Powercap) -> None:
    def resumed(last: dict[str, float]) -> EpochRecorder:
        recorder = EpochRecorder(RecordingTracker(), TrainerConfig())
        values = {"epoch_seconds": 1.0, "val/accuracy": 0.5, **last}
        recorder.load_state_dict({"history": [values]})
        recorder.load = MachineLoad(powercap=powercap.root)
        powercap.set("intel-rapl:0", 936_000_000)
        recorder.load.sample()
        powercap.set("intel-rapl:0", 900_000_000)
        return recorder

    assert resumed({ENERGY_CPU: 2.0})._energy() == pytest.approx({ENERGY_CPU: 2.01})
    assert resumed({})._energy() == {}


def test_a_run_records_the_machine_in_each_epoch_unless_it_is_told_not_to(
    run: Callable[..., tuple], tiny_config: Callable[..., RunConfig]
) -> None:
    _, tracker = run(tiny_config("trainer.max_epochs=2"))
    for epoch in range(2):
        assert tracker.epochs[epoch]["system/system_memory_usage_megabytes"] > 0
    costs = tracker.summary
    assert costs["train_images_per_second"] == pytest.approx(costs["train_images"] / costs["train_seconds"])
    assert "RAPL" in tracker.tags["harness.energy"]
    _, silent = run(tiny_config("trainer.max_epochs=1", "tracking.system_metrics=false"), "silent")
    assert not [name for name in silent.epochs[0] if name.startswith("system/")]
    assert "harness.energy" not in silent.tags
