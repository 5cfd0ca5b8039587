"""Commands need a run store; making one takes seconds, so it is made once and copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness.config.schema import TrackingConfig


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from harness.tracking.address import DATABASE
    from harness.tracking.store import open_store

    folder = tmp_path_factory.mktemp("store")
    open_store(TrackingConfig(dir=str(folder)))
    return folder / DATABASE


@pytest.fixture
def made_store(store_template: Path) -> None:
    """An empty run store at MLRUNS_DIR."""
    folder = Path(os.environ["MLRUNS_DIR"])
    folder.mkdir(parents=True)
    shutil.copy(store_template, folder)
