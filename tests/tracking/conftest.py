"""A real run store per test, and what may go wrong with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking._tracking_service import utils as mlflow_process

from harness.config.schema import TrackingConfig
from harness.tracking.store import RunStore, open_store


@pytest.fixture
def tracking(empty_databases: list[Path], tmp_path: Path) -> TrackingConfig:
    """A store whose path has spaces and other scripts in it."""
    directory = tmp_path / "données #1 中文 100%"
    directory.mkdir()
    shutil.copy(empty_databases[1], directory)
    return TrackingConfig(dir=str(directory))


@pytest.fixture
def store(tracking: TrackingConfig) -> RunStore:
    return open_store(tracking)


def end_of_process() -> None:
    """Forget what MLflow knows for as long as a process lives: the place of a run's artifacts, by its id."""
    mlflow_process._artifact_repos_cache.clear()


CALLS = (
    "log_batch",
    "log_artifact",
    "log_inputs",
    "set_terminated",
    "create_logged_model",
    "get_run",
    "log_model_artifacts",
)
ARTIFACT_CALLS = ("log_artifact", "log_model_artifacts")


class Outage:
    """A switch between a store that answers and one that does not."""

    def __init__(self, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.calls = CALLS  # that fail while there is an error
        for name in CALLS:
            monkeypatch.setattr(store.client, name, self._guarded(name, getattr(store.client, name)))

    def _guarded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.error is not None and name in self.calls:
                raise self.error
            return call(*args, **kwargs)

        return guarded


@pytest.fixture
def outage(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(store, monkeypatch)
