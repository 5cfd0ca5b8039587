"""Recording never stops training, and nothing of it is lost or doubled."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from harness.config.schema import TrackingConfig
from harness.tracking.spool import Spool
from harness.tracking.store import RunStore, open_store
from tests.tracking.conftest import Outage

ERRORS = [
    MlflowException("the database is on fire"),
    requests.ConnectionError("no route"),
    sqlite3.OperationalError("database is locked"),
    OperationalError("INSERT", {}, Exception("disk full")),
    PermissionError("read-only"),
]


def spool_of(tracking: TrackingConfig, run_id: str) -> Path:
    return Path(tracking.dir) / "spool" / "own" / f"{run_id}.jsonl"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_outage_is_bridged(
    store: RunStore, tracking: TrackingConfig, outage: Outage, error: Exception, tmp_path: Path
) -> None:
    tracker = store.start_run("a", "exp", {})
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    tracker.log_epoch(0, {"val/loss": 3.0})
    outage.error = error
    tracker.log_params({"optim": {"lr": 0.1}})
    tracker.log_epoch(1, {"val/loss": 2.0})
    tracker.log_text("kept", "notes/a.txt")
    tracker.log_image(np.full((4, 4, 3), 7, np.uint8), "val/examples", 1)
    tracker.log_data(name="d", digest="x", source="s", num_rows=1, class_names=["a"], context="training")
    images = np.zeros((1, 4, 4, 3), np.uint8)
    tracker.log_model(checkpoint, input_example=images, class_names=["a", "b"], metrics={"val/accuracy": 1})
    outage.error = None
    tracker.log_epoch(2, {"val/loss": 1.0})
    run = store.client.get_run(tracker.run_id)
    history = store.client.get_metric_history(tracker.run_id, "val/loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert run.data.params == {"optim.lr": "0.1"}
    assert len(run.inputs.dataset_inputs) == len(run.outputs.model_outputs) == 1
    assert Path(store.client.download_artifacts(tracker.run_id, "notes/a.txt")).read_text() == "kept"
    pictures = [f.path for f in store.client.list_artifacts(tracker.run_id, "images")]
    assert len(pictures) == 2  # and MLflow's small copy
    assert all(path.startswith("images/val~examples+step+1+") for path in pictures)
    for ending in ("txt", "png"):
        assert list(spool_of(tracking, tracker.run_id).parent.glob(f"**/*.{ending}")) == []
    assert not spool_of(tracking, tracker.run_id).exists()


def test_an_outage_to_the_end_is_made_good_by_the_next_command(
    store: RunStore, tracking: TrackingConfig, outage: Outage
) -> None:
    tracker = store.start_run("a", "exp", {})
    outage.error = requests.ConnectionError("no route")
    tracker.log_epoch(0, {"val/loss": 1.0})
    tracker.finish("FINISHED")
    outage.error = None
    assert store.client.get_run(tracker.run_id).info.status == "RUNNING"
    ended_before_ms = tracking_time_ms(spool_of(tracking, tracker.run_id))
    run = open_store(tracking).client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["val/loss"]) == ("FINISHED", 1.0)
    assert run.info.end_time == ended_before_ms  # when it ended, not when that became known


def tracking_time_ms(spool: Path) -> int:
    end_time: int = json.loads(spool.read_text().splitlines()[-1])["end_time"]
    return end_time


def test_one_warning_per_outage(store: RunStore, outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    tracker = store.start_run("a", "exp", {})
    for _ in range(2):
        outage.error = MlflowException("away\nwith a long\ntrace")
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                tracker.set_tags({"a": "b"})
        outage.error = None
        tracker.set_tags({"a": "b"})
    warnings = [record.getMessage() for record in caplog.records if "does not record" in record.getMessage()]
    assert len(warnings) == 2
    assert "\n" not in warnings[0]


def test_replaying_twice_doubles_nothing(store: RunStore, tracking: TrackingConfig, outage: Outage) -> None:
    """A crash between recording an operation and forgetting it."""
    tracker = store.start_run("a", "exp", {})
    outage.error = MlflowException("away")
    tracker.log_epoch(0, {"val/loss": 1.0})
    spool = spool_of(tracking, tracker.run_id)
    content = spool.read_bytes()
    outage.error = None
    tracker.set_tags({})
    spool.write_bytes(content)
    open_store(tracking)
    assert len(store.client.get_metric_history(tracker.run_id, "val/loss")) == 1


def test_what_is_refused_for_good_does_not_block_the_rest(
    store: RunStore, tracking: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = store.start_run("a", "exp", {})
    tracker.log_params({"a name with a \n line break": 1})
    tracker.log_epoch(0, {"val/loss": 1.0})
    assert store.client.get_run(tracker.run_id).data.metrics["val/loss"] == 1.0
    assert "refused" in caplog.text
    assert not spool_of(tracking, tracker.run_id).exists()
    aside = spool_of(tracking, tracker.run_id).with_suffix(".refused.jsonl").read_text()
    assert "line break" in aside


def test_a_full_disk_does_not_stop_training_either(
    store: RunStore, outage: Outage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = store.start_run("a", "exp", {})
    outage.error = MlflowException("away")

    def full(self: Spool, operation: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    tracker.log_epoch(0, {"val/loss": 1.0})
    assert "is lost" in caplog.text


def test_a_resumed_run_knows_what_its_spool_holds(
    store: RunStore, tracking: TrackingConfig, outage: Outage
) -> None:
    first = store.start_run("a", "exp", {})
    outage.error = MlflowException("away")
    first.log_epoch(0, {"val/loss": 1.0})
    outage.error = None
    again = open_store(tracking).start_run(None, "exp", {}, run_id=first.run_id)
    again.log_epoch(0, {"val/loss": 9.0})
    again.log_epoch(1, {"val/loss": 0.5})
    values = [point.value for point in store.client.get_metric_history(first.run_id, "val/loss")]
    assert values == [1.0, 0.5]
