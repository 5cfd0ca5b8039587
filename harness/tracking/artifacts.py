"""Reads back what a run has recorded: predictions, thresholds of labels, code and machine, all metrics.

`harness.analysis.compare`, `harness.search` and `harness.training` call `load_predictions`, `harness.export`
`load_thresholds`; `record.py` of `harness.training` writes the files. `harness.training.commands.rerun`
reads the others.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.artifacts import download_artifacts

from harness.config.schema import TrackingConfig
from harness.errors import TrackingError, first_line
from harness.tracking import names
from harness.tracking.address import store_uri
from harness.tracking.mlflow_writes import STORE_ERRORS
from harness.tracking.runs import RunRecord
from harness.tracking.store import open_store

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


def load_thresholds(tracking: TrackingConfig, run: RunRecord, class_names: Sequence[str]) -> list[float]:
    """Return the threshold of each label that a multi-label run has recorded for its best checkpoint.

    Raises:
        TrackingError: the run recorded none, or of other labels.
    """
    try:
        found = json.loads(read_artifact(tracking, run, names.THRESHOLDS))
        return [float(found[name]) for name in class_names]
    except (*STORE_ERRORS, ValueError, KeyError) as error:
        raise TrackingError(
            f"run {run.run_id} ({run.name}) kept no {names.THRESHOLDS} of its labels ({first_line(error)}): "
            f"`harness evaluate --run {run.run_id} --split val` records them"
        ) from error


@dataclass(frozen=True)
class RecordedCode:
    """What a run has recorded of its code and its machine."""

    environment: dict[str, Any]  # of harness.tracking.environment.Environment, as JSON
    patch: str  # empty: there were no uncommitted changes, or they were not recorded


def load_code(tracking: TrackingConfig, run: RunRecord) -> RecordedCode:
    """Return the code and the machine that a run has recorded.

    Raises:
        TrackingError: it has recorded neither, or the store cannot be read.
    """
    try:
        environment = json.loads(read_artifact(tracking, run, names.ENVIRONMENT_FILE))
    except STORE_ERRORS as error:
        raise TrackingError(
            f"run {run.run_id} ({run.name}) has recorded no {names.ENVIRONMENT_FILE}, which names its code "
            f"({first_line(error)}): train its configuration anew"
        ) from error
    patch = b""
    if (environment.get("checkout") or {}).get("is_dirty"):
        with suppress(*STORE_ERRORS):  # there is none where only files that git does not track were new
            patch = read_artifact(tracking, run, names.PATCH_FILE)
    return RecordedCode(environment, patch.decode("utf-8"))


def read_points(tracking: TrackingConfig, run: RunRecord) -> dict[tuple[str, int], float]:
    """Return every value that a run has recorded, by metric and step.

    Raises:
        TrackingError: the store cannot be read.
    """
    client = open_store(tracking, to_read=True).client
    try:
        return {
            (key, point.step): point.value
            for key in client.get_run(run.run_id).data.metrics
            for point in client.get_metric_history(run.run_id, key)
        }
    except STORE_ERRORS as error:
        raise TrackingError(f"the metrics of run {run.run_id} cannot be read: {first_line(error)}") from error


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
