"""`MlflowTracker`: records one run in MLflow, and keeps on disk what MLflow cannot take now.

`RunStore` (`store.py`) creates the trackers. A method that records something builds an operation
(`mlflow_writes.py`) and passes it to `_record`, which applies it or appends it to the run's spool
(`spool.py`).
"""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow import MlflowClient
from PIL import Image

from harness.errors import first_line
from harness.tracking import names
from harness.tracking.logged_model import shrink_example
from harness.tracking.mlflow_writes import STORE_ERRORS, Point, apply
from harness.tracking.spool import Lane, Operation, Points, Spool
from harness.tracking.tracker import RunStatus, flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class MlflowTracker:
    """The :class:`~harness.tracking.tracker.Tracker` of one MLflow run.

    It uses MLflow's client and no global state (no active run), so a process can hold several.

    Args:
        recorded: every metric point that the run has already, or that its spool holds.
        keeps_status: the run has ended and is only added to: `finish` leaves its status as it is.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        spool: Spool,
        *,
        recorded: Points | None = None,
        keeps_status: bool = False,
    ) -> None:
        recorded = recorded or {}
        self._client = client
        self._run_id = run_id
        self._spool = spool
        self._recorded = dict(recorded)
        self._epochs = {step for key, step in recorded if key == names.EPOCH}
        self._keeps_status = keeps_status
        # Called before anything is sent or spooled. A sweep's trial exits here if another process owns it
        # now.
        self.before_write: Callable[[], None] = lambda: None
        self._away: list[Lane] = []  # lanes whose last write failed, and waits until MLflow is back

    @property
    def run_id(self) -> str:
        return self._run_id

    def log_params(self, config: Mapping[str, Any]) -> None:
        self._record({"op": "params", "params": flatten(config)})

    def log_epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        if step in self._epochs:
            return
        self._epochs.add(step)
        self._record({"op": "metrics", "points": self._new_points(step, {**metrics, names.EPOCH: step})})

    def log_summary(self, metrics: Mapping[str, float], *, replaces: bool = False) -> None:
        # MLflow's lists show the value at a metric's highest step. Where that is this value already, nothing
        # is written: another point would lengthen the curve by an epoch that was not trained. Otherwise the
        # value goes to the step after the last epoch.
        last = self._last_points()
        news = {key: value for key, value in metrics.items() if _is_news(value, last.get(key))}
        points: list[Point] = []
        for key, value in news.items():
            step = max(self._summary_step, last[key][3] + 1 if replaces and key in last else 0)
            points += self._new_points(step, {key: value})
        if points:
            self._record({"op": "metrics", "points": points})

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        self._record({"op": "tags", "tags": dict(tags)})

    def log_text(self, text: str, name: str) -> None:
        self._log_artifact(name, lambda path: path.write_text(text, "utf-8", errors="backslashreplace"))

    def log_dict(self, content: Mapping[str, Any], name: str) -> None:
        self.log_text(json.dumps(content, indent=2, ensure_ascii=False), name)

    def log_bytes(self, content: bytes, name: str) -> None:
        self._log_artifact(name, lambda path: path.write_bytes(content))

    def log_figure(self, figure: Figure, name: str) -> None:
        self._log_artifact(name, figure.savefig)

    def log_image(self, image: np.ndarray, key: str, step: int) -> None:
        details = {"op": "image", "key": key, "step": step, "time": _now_ms()}
        save = functools.partial(Image.fromarray(image).save, compress_level=1)  # MLflow writes it anew
        self._record_file(f"{key} of step {step}", "image.png", save, details)

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
        self.log_summary(metrics)
        # MLflow writes a model's metric to its run, too. A point with the same time as the run's is the same
        # row of its table; one with another time would be a second point of the run's curve.
        last = self._last_points()
        points = [last[key] for key in metrics]
        self._record(
            {
                "op": "model",
                "checkpoint": str(Path(checkpoint_path).resolve()),
                "example": shrink_example(input_example).tolist(),
                "class_names": list(class_names),
                "points": points,
            }
        )

    def forget_checkpoint(self) -> None:
        """Record that the run's checkpoint was removed to make room, and delete MLflow's copy of it."""
        self.set_tags({names.CHECKPOINT: names.CHECKPOINT_REMOVED})
        self._record({"op": "forget_models"})

    def finish(self, status: RunStatus) -> None:
        if not self._keeps_status:
            self._record({"op": "status", "status": status, "end_time": _now_ms()})
        if self._spool.records not in self._away:
            self._catch_up()

    @property
    def _summary_step(self) -> int:
        return max(self._epochs, default=-1) + 1

    def _last_points(self) -> dict[str, Point]:
        """Return the point at the highest step of each metric."""
        last: dict[str, Point] = {}
        for (key, step), (value, time_ms) in self._recorded.items():
            if key not in last or step > last[key][3]:
                last[key] = (key, value, time_ms, step)
        return last

    def _new_points(self, step: int, metrics: Mapping[str, float]) -> list[Point]:
        """Return the points that the run does not have yet, and remember them."""
        now = _now_ms()
        points = [(k, float(v), now, step) for k, v in metrics.items() if (k, step) not in self._recorded]
        self._recorded.update({(key, step): (value, now) for key, value, *_ in points})
        return points

    def _log_artifact(self, name: str, write: Callable[[Path], object]) -> None:
        self._record_file(name, PurePosixPath(name).name, write, {"op": "artifact", "name": name})

    def _record_file(
        self, what: str, file_name: str, write: Callable[[Path], object], operation: Operation
    ) -> None:
        """Write a file into the spool's folder, and record the operation with its path.

        If MLflow cannot take it now, the file is already where the spool needs it. $TMPDIR would not do: its
        files do not survive a reboot, and it may have too little room.
        """
        self.before_write()
        try:
            path = self._spool.new_file(file_name)
            write(path)
        except OSError as error:  # neither a full disk nor an unreachable MLflow ends training
            logger.error("run %s: %s is lost, it cannot be written: %s", self._run_id, what, error)
            return
        self._record({**operation, "path": f"{path.parent.name}/{path.name}"})

    def _apply(self, operation: Operation) -> list[Operation]:
        return apply(self._client, self._spool, operation)

    def _record(self, operation: Operation) -> None:
        """Apply an operation after the waiting ones that must precede it; if MLflow fails, spool it."""
        self.before_write()
        lane = self._spool.lane_of(operation)
        is_record = lane is self._spool.records
        try:
            # Records keep their order, so those that wait are tried first. Waiting artifacts are not tried
            # here: each failed upload may take as long as a timeout, and would be repeated with every epoch.
            if is_record:
                lane.replay(self._apply)
            # True where an earlier version of this artifact failed, or another process is replaying.
            waits = lane.holds_back(operation)
            if not waits:
                self._spool.set_aside(self._apply(operation))
        except STORE_ERRORS as error:
            self._keep(operation, error)
            return
        if waits:
            self._keep(operation)
        else:
            self._spool.discard_file(operation)
            self._is_back(lane)

    def _is_back(self, lane: Lane) -> None:
        """Note that MLflow has taken a write of this lane again, and try what waits in both lanes."""
        if lane in self._away:
            self._away.remove(lane)
            logger.info("MLflow is back: what run %s had kept on disk is recorded", self._run_id)
            self._catch_up()

    def _catch_up(self) -> None:
        """Try everything that waits once. Called when the store is back and at the end, not every epoch."""
        with suppress(*STORE_ERRORS):
            self._spool.replay(self._apply)

    def _keep(self, operation: Operation, error: Exception | None = None) -> None:
        try:
            self._spool.append(operation)
            # Another process was replaying. It may have read the file for the last time before this line was
            # appended, so look once more.
            if error is None:
                self._catch_up()
        except OSError as disk_error:  # training goes on, even if neither MLflow nor the disk takes it
            logger.error(
                "run %s: %r is lost, MLflow and the spool fail: %s", self._run_id, operation["op"], disk_error
            )
            return
        lane = self._spool.lane_of(operation)
        if error is not None and lane not in self._away:
            logger.warning(
                "MLflow does not record (%s); training goes on, and %s is recorded later",
                first_line(error),
                lane.path,
            )
            self._away.append(lane)


def _is_news(value: float, last: Point | None) -> bool:
    """Tell whether a metric's value differs from the recorded one; NaN stands for no value."""
    before = math.nan if last is None else last[1]
    return before != value and not (math.isnan(before) and math.isnan(value))


def _now_ms() -> int:
    return int(time.time() * 1000)
