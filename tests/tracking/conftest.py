"""A real run store per test, copied from one that is made once: a fresh MLflow database takes seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.config.schema import TrackingConfig
from harness.tracking.store import RunStore, open_store


def make_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the session's empty database, made by whoever asks first."""
    directory = tmp_path_factory.getbasetemp() / "empty-store"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_store(TrackingConfig(dir=str(directory)))
    return directory / "mlflow.db"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory)


@pytest.fixture
def tracking(empty_database: Path, tmp_path: Path) -> TrackingConfig:
    """A store whose path has spaces and other scripts in it."""
    directory = tmp_path / "données #1 中文 100%"
    directory.mkdir()
    shutil.copy(empty_database, directory)
    return TrackingConfig(dir=str(directory))


@pytest.fixture
def store(tracking: TrackingConfig) -> RunStore:
    return open_store(tracking)
