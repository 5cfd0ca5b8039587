"""Small runs on the digits: a LeNet learns them within seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.tracking.memory import RecordingTracker
from harness.training.result import RunResult
from harness.training.train import train

TINY = (
    "data=digits",
    "model=lenet",
    "data.max_train_samples=300",
    "optim.lr=0.003",
    "tracking.log_model=false",
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
