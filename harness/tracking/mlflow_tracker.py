"""A run recorded in MLflow; while MLflow is away, in the spool."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow import MlflowClient

from harness.tracking import names
from harness.tracking.flatten import flatten
from harness.tracking.logged_model import shrink_example
from harness.tracking.operations import STORE_ERRORS, Point, apply, first_line
from harness.tracking.spool import Operation, Spool
from harness.tracking.tracker import RunStatus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class MlflowTracker:
    """The :class:`~harness.tracking.tracker.Tracker` of one MLflow run, through the client alone.

    Args:
        recorded: time (milliseconds) of every (metric, step) point that the run already has.
        keeps_status: the run has ended, and something is only added to it.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        spool: Spool,
        *,
        recorded: Mapping[tuple[str, int], int] | None = None,
        keeps_status: bool = False,
    ) -> None:
        recorded = recorded or {}
        self._client = client
        self._run_id = run_id
        self._spool = spool
        self._recorded = dict(recorded)
        self._last_epoch = max((step for key, step in recorded if key == names.EPOCH), default=-1)
        self._keeps_status = keeps_status
        self._is_away = False

    @property
    def run_id(self) -> str:
        return self._run_id

    def log_params(self, config: Mapping[str, Any]) -> None:
        self._record({"op": "params", "params": flatten(config)})

    def log_epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        if step <= self._last_epoch:
            return
        self._last_epoch = step
        self._record({"op": "metrics", "points": self._new_points(step, {**metrics, names.EPOCH: step})})

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        # One step after the last epoch: MLflow shows a metric's value at its highest step, and the best
        # checkpoint's accuracy must not be hidden behind the last epoch's.
        points = self._new_points(self._last_epoch + 1, metrics)
        if points:
            self._record({"op": "metrics", "points": points})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._record({"op": "tags", "tags": dict(tags)})

    def log_text(self, text: str, name: str) -> None:
        self._log_artifact(name, lambda path: path.write_text(text, encoding="utf-8"))

    def log_dict(self, content: Mapping[str, Any], name: str) -> None:
        self.log_text(json.dumps(content, indent=2, ensure_ascii=False), name)

    def log_figure(self, figure: Figure, name: str) -> None:
        self._log_artifact(name, figure.savefig)

    def log_file(self, path: Path, name: str) -> None:
        # A hard link would do, but not every file system has them, and such files are small.
        self._log_artifact(name, lambda copy: copy.write_bytes(path.read_bytes()))

    def log_data(
        self, *, name: str, digest: str, source: str, num_rows: int, class_names: Sequence[str], context: str
    ) -> None:
        record = {"name": name, "digest": digest, "source": source, "num_rows": num_rows, "context": context}
        self._record({"op": "data", "class_names": list(class_names), **record})

    def log_model(
        self,
        checkpoint_path: Path,
        *,
        input_example: np.ndarray,
        class_names: Sequence[str],
        metrics: Mapping[str, float],
    ) -> None:
        step = self._last_epoch + 1
        known = {(key, step): self._recorded.get((key, step)) for key in metrics}
        fresh = self._new_points(step, metrics)
        # A model's metric is written to its run as well: the very same point (its time included) is one row.
        repeated = [(k, float(metrics[k]), time_ms, s) for (k, s), time_ms in known.items() if time_ms]
        self._record(
            {
                "op": "model",
                "checkpoint": str(Path(checkpoint_path).resolve()),
                "example": shrink_example(input_example).tolist(),
                "class_names": list(class_names),
                "points": fresh + repeated,
            }
        )

    def forget_checkpoint(self) -> None:
        """Record that the run's checkpoint was removed to make room, and delete MLflow's copy of it."""
        self.set_tags({names.CHECKPOINT: names.CHECKPOINT_REMOVED})
        self._record({"op": "forget_models"})

    def finish(self, status: RunStatus) -> None:
        if not self._keeps_status:
            self._record({"op": "status", "status": status, "end_time": _now_ms()})

    def _new_points(self, step: int, metrics: Mapping[str, float]) -> list[Point]:
        """Return the points that the run does not have yet, and remember them."""
        now = _now_ms()
        points = [(k, float(v), now, step) for k, v in metrics.items() if (k, step) not in self._recorded]
        self._recorded.update({(key, step): now for key, *_ in points})
        return points

    def _log_artifact(self, name: str, write: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / PurePosixPath(name).name
            write(path)
            self._record({"op": "artifact", "path": str(path), "name": name})

    def _record(self, operation: Operation) -> None:
        """Do it, after all that waits; keep it for later if the store is away."""
        try:
            self._spool.replay(lambda waiting: apply(self._client, self._run_id, waiting))
            apply(self._client, self._run_id, operation)
        except STORE_ERRORS as error:
            self._keep(operation, error)
        else:
            if self._is_away:
                logger.info("MLflow is back: what run %s had kept on disk is recorded", self._run_id)
            self._is_away = False

    def _keep(self, operation: Operation, error: Exception) -> None:
        try:
            self._spool.append(operation)
        except OSError as disk_error:  # training goes on even now
            logger.error(
                "run %s: %r is lost, MLflow and the spool fail: %s", self._run_id, operation["op"], disk_error
            )
            return
        if not self._is_away:
            logger.warning(
                "MLflow does not record (%s); training goes on, and %s is recorded later",
                first_line(error),
                self._spool.path,
            )
        self._is_away = True


def _now_ms() -> int:
    return int(time.time() * 1000)
