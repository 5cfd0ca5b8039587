"""The file that a trial's process is started with, the process's stop flag, and the GPUs that it may use.

The scheduler writes a `TrialSpec`, an executor passes its path on, and `run.py` reads it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class TrialSpec:
    """Which trial of which sweep a process is to run, and the devices and threads that it may use."""

    sweep_name: str
    storage: str  # URL of the database
    number: int
    trial_id: int
    plan: dict[str, Any]  # SweepPlan.to_dict()
    data_kind: str  # the kind of data that `data=auto` was resolved to in this sweep
    experiment: str
    parent_run_id: str
    attempt: int  # number of the claim; if the database holds a higher one, another process has the trial
    threads: int | None  # of each of the trial's processes; None: as the configuration says
    device_indices: list[int] | None  # among the visible GPUs; None: no pinning
    compute: float | None = None  # that the trial's training takes, in 10^15 operations; None: as configured
    command: str = ""  # the shell command that continues the sweep, without any password

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # the database's address may hold a password
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TrialSpec:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class StopFlag:
    """Tells whether this process should stop: it got SIGTERM, or its coordinator is dead."""

    def __init__(self) -> None:
        self._asked = False
        self._coordinator = multiprocessing.parent_process()
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __call__(self) -> bool:
        # is_alive() tests a pipe whose other end the system closes when the coordinator dies, even if killed.
        return self._asked or (self._coordinator is not None and not self._coordinator.is_alive())


def pin_devices(indices: Sequence[int]) -> None:
    """Make only some GPUs visible to this process. Call it before CUDA is initialised."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(max(indices) + 1)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices[i % len(devices)].strip() for i in indices)
