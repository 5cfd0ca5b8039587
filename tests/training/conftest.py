"""Small runs on the digits: a LeNet learns them within seconds."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.training.result import EpochReport, RunResult
from harness.training.train import train
from tests.helpers.recording_tracker import RecordingTracker

TINY = (
    "data=digits",
    "model=lenet",
    "data.max_train_samples=300",
    "optim.lr=0.003",
    "tracking.log_model=false",
    "evaluation.pictures=none",
)


@pytest.fixture
def tiny_config() -> Callable[..., RunConfig]:
    return lambda *overrides: compose_run([*TINY, *overrides])


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[RunResult, RecordingTracker]]:
    def _run(config: RunConfig, folder: str = "run", **how: object) -> tuple[RunResult, RecordingTracker]:
        tracker = RecordingTracker()
        return train(config, tracker=tracker, checkpoint_dir=tmp_path / folder, **how), tracker  # type: ignore[arg-type]

    return _run


def stop_after(num_epochs: int) -> dict[str, Any]:
    """Return arguments of `train` that interrupt it after the first batch of the epoch after so many."""
    done: list[EpochReport] = []
    return {
        "on_epoch": lambda report: done.append(report) or "continue",
        "stop_requested": lambda: len(done) == num_epochs,
    }


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


@contextmanager
def limited_file_size(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
