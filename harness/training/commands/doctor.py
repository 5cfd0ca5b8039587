"""The command `harness doctor`: lists versions, hardware, disk space, run store and data of this machine.

It also shows the device and the precision that `machine.py` chooses for the setting `auto`.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import torch

from harness.config.schema import TrackingConfig, TrainerConfig
from harness.credentials import shown
from harness.tracking.environment import available_cores, package_versions
from harness.training.devices.machine import resolve_machine


def diagnose(tracking: TrackingConfig, data_dir: Path) -> dict[str, str]:
    """Return versions, device, precision, threads, disk, data and run store, each in words."""
    machine = resolve_machine(TrainerConfig())
    is_by_network = machine.device.type == "cpu" and machine.precision == "bf16"
    by_network = " (fp32 for networks with grouped convolutions)" if is_by_network else ""
    disk = shutil.disk_usage(Path.cwd())
    return {
        "python": f"{platform.python_version()} on {platform.platform()}",
        **package_versions(),
        "device": ", ".join(machine.describe().values()) + by_network,
        "gpus": str(torch.cuda.device_count()),
        "cores": f"{available_cores()} of {os.cpu_count()}",
        "disk": f"{disk.free / 2**30:.1f} GiB free of {disk.total / 2**30:.1f}",
        "run store": _describe_store(tracking),
        "data": _describe_data(data_dir),
    }


def _describe_store(tracking: TrackingConfig) -> str:
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return f"{shown(uri)} (MLFLOW_TRACKING_URI)"
    folder = Path(tracking.dir)
    nearest = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    return f"{folder}/mlflow.db" + ("" if os.access(nearest, os.W_OK) else " — NOT WRITABLE")


def _describe_data(data_dir: Path) -> str:
    candidates = ("cifar10/plain_text", "cifar-10-batches-py", "cifar-10-python.tar.gz")
    found = [name for name in candidates if (data_dir / name).exists()]
    return f"{data_dir}: " + (
        ", ".join(found) if found else "no CIFAR-10 (data=auto downloads it, or uses the digits)"
    )
