"""Reads back what a run has recorded as files: its per-image predictions.

`harness.analysis.compare`, `harness.search` and `harness.training` call `load_predictions`; `record.py` of
`harness.training` writes the files.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.artifacts import download_artifacts

from harness.config.schema import TrackingConfig
from harness.errors import TrackingError, first_line
from harness.tracking import names
from harness.tracking.address import store_uri
from harness.tracking.mlflow_writes import STORE_ERRORS
from harness.tracking.runs import RunRecord

if TYPE_CHECKING:
    from harness.analysis.predictions import Predictions


def load_predictions(tracking: TrackingConfig, run: RunRecord, split: str = "val") -> Predictions:
    """Return what a recorded run's best checkpoint answered to each image of a split.

    The predictions on the test split of a sweep's best trial are kept by the sweep's parent run.

    Raises:
        TrackingError: the run kept none (as runs of earlier versions did), or the file is damaged.
    """
    from harness.analysis.predictions import from_bytes

    name = names.PREDICTIONS.format(split=split)
    try:
        content = read_artifact(tracking, run, name)
    except STORE_ERRORS as error:
        raise TrackingError(
            f"run {run.run_id} ({run.name}) kept no {name} ({first_line(error)}): "
            f"`harness evaluate --run {run.run_id} --split {split}` records it, if its checkpoint is there"
        ) from error
    return from_bytes(content, f"{name} of run {run.run_id} ({run.name})")


def read_artifact(tracking: TrackingConfig, run: RunRecord, name: str) -> bytes:
    """Return the bytes of a file that a run has recorded.

    Raises:
        One of STORE_ERRORS: there is no such file, or the store cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="harness-artifact-") as folder:
        uri = f"{run.artifact_uri}/{name}"
        return Path(
            download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=store_uri(tracking))
        ).read_bytes()
