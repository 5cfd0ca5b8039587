"""A spool belongs to its store; its lanes hold back only what must keep its order; it takes what it can."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from harness.config.schema import TrackingConfig
from harness.tracking.address import OWN, store_identity
from harness.tracking.mlflow_tracker import MlflowTracker
from harness.tracking.mlflow_writes import apply
from harness.tracking.spool import Spool
from harness.tracking.store import RunStore, open_store
from tests.tracking.conftest import ARTIFACT_CALLS, Outage


def tear(spool: Spool) -> None:
    """Leave what a process leaves that is killed while it appends."""
    with spool.records.path.open("a") as file:
        file.write('{"op": "tags", "ta')


def replayed(spool: Spool) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def apply(operation: dict[str, Any]) -> list[dict[str, Any]]:
        seen.append(operation)
        return []

    spool.replay(apply)
    return seen


def test_a_torn_line_costs_no_line_after_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    spool.append({"op": "tags", "number": 0})
    tear(spool)
    Spool(tmp_path, "run").append({"op": "tags", "number": 1})
    assert [operation["number"] for operation in replayed(spool)] == [0, 1]


def test_a_line_that_the_full_disk_cuts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "run")
    spool.append({"op": "tags", "number": 0})
    monkeypatch.setattr("harness.tracking.spool.json.dumps", lambda _: "x" * 10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="no space"):
            spool.append({"op": "tags", "number": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [operation["number"] for operation in spool.records.operations()] == [0]
    assert spool.records.path.read_bytes().endswith(b"}\n")


def test_torn_lines_are_skipped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    spool.append({"op": "tags", "tags": {"a": "1"}})
    tear(spool)
    assert replayed(spool) == [{"op": "tags", "tags": {"a": "1"}}]


def test_what_fails_again_stays_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    for number in range(4):
        spool.append({"op": "tags", "number": number})
    done: list[int] = []

    def fail_at_two(operation: dict[str, Any]) -> list[dict[str, Any]]:
        if operation["number"] == 2 and len(done) == 2:
            raise MlflowException("away again")
        done.append(operation["number"])
        return []

    with pytest.raises(MlflowException):
        spool.replay(fail_at_two)
    done.append(-1)
    spool.replay(fail_at_two)
    assert done == [0, 1, -1, 2, 3]


# ── a spool belongs to its store ──────────────────────────────────────────────────────────────────


def test_a_spool_waits_for_the_store_that_it_belongs_to(
    tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Any command in a shell without MLFLOW_TRACKING_URI opens another store over the same folder."""
    elsewhere = Path(tracking.dir) / "elsewhere.db"
    shutil.copy(Path(tracking.dir) / "mlflow.db", elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}")
    store = open_store(tracking)
    tracker = store.start_run("a", "exp", {})
    with monkeypatch.context() as patch:
        Outage(store, patch).error = requests.ConnectionError("no route")
        tracker.log_epoch(0, {"val/loss": 1.0})
        tracker.finish("FINISHED")

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with caplog.at_level(logging.INFO, "harness"):
        open_store(tracking)
    assert "had kept on disk is recorded" not in caplog.text
    assert "wait for another run store" in caplog.text

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}")
    run = open_store(tracking).client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["val/loss"]) == ("FINISHED", 1.0)


def test_what_belongs_to_no_run_of_the_store_is_set_aside_not_dropped(
    store: RunStore, tracking: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Its database was deleted, or restored from before the run."""
    unknown = "f" * 32
    store.close_run(unknown, "FAILED")
    spool = store.spool_of(unknown)
    spool.append({"op": "metrics", "points": [["val/loss", 1.0, 1, 0]]})
    with caplog.at_level(logging.INFO, "harness"):
        open_store(tracking)
        open_store(tracking)
    kept = [json.loads(line)["op"] for line in spool.refused.read_text().splitlines()]
    assert kept == ["status", "metrics"]
    assert spool.is_empty
    assert caplog.text.count(str(spool.refused)) == 2  # once each, and no more


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("http://me:pw@host:5000/", "http://you:other@HOST:5000", True),
        ("http://host:5000", "http://host:5001", False),
        ("postgresql://me:p/w@host/db?sslmode=require", "postgresql+psycopg://me@host/db", True),
        ("postgresql://host/db", "postgresql://host/other", False),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/./mlflow.db?timeout=9", True),
        ("databricks", "databricks://profile", False),
    ],
)
def test_a_store_is_known_by_its_address_whoever_uses_it(first: str, second: str, is_same: bool) -> None:
    identities = [store_identity(uri, Path("/elsewhere")) for uri in (first, second)]
    assert (identities[0] == identities[1]) is is_same
    assert not any(word in identity for identity in identities for word in ("pw", "p/w", "other@", "me"))


def test_the_database_beside_the_runs_is_itself_wherever_they_are_moved() -> None:
    for place in (Path("/a"), Path("/b b")):
        assert store_identity(f"sqlite:///{place}/mlflow.db", place) == OWN


# ── one artifact that cannot be written ───────────────────────────────────────────────────────────


def log_small_model(tracker: MlflowTracker, checkpoint: Path) -> None:
    images = np.zeros((1, 4, 4, 3), np.uint8)
    tracker.log_model(checkpoint, input_example=images, class_names=["a", "b"], metrics={"val/accuracy": 0.5})


def models_of(store: RunStore, run_id: str) -> list[str]:
    experiment = store.client.get_run(run_id).info.experiment_id
    return [model.status.name for model in store.client.search_logged_models([experiment])]


def test_an_artifact_that_cannot_be_written_holds_back_nothing_else(
    store: RunStore, tracking: TrackingConfig, outage: Outage, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    tracker = store.start_run("a", "exp", {})
    outage.calls, outage.error = ARTIFACT_CALLS, PermissionError("quota exceeded")
    tracker.log_text("kept", "config.yaml")
    for epoch in range(3):
        tracker.log_epoch(epoch, {"val/accuracy": 0.1 * epoch})
        log_small_model(tracker, checkpoint)
    tracker.set_tags({"a": "b"})
    tracker.finish("FINISHED")
    run = store.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    assert len(store.client.get_metric_history(tracker.run_id, "epoch")) == 3
    assert models_of(store, tracker.run_id) in ([], ["PENDING"])  # one, however often it was tried

    outage.error = None
    open_store(tracking)
    assert Path(store.client.download_artifacts(tracker.run_id, "config.yaml")).read_text() == "kept"
    assert models_of(store, tracker.run_id) == ["READY"]
    assert len(store.client.get_run(tracker.run_id).outputs.model_outputs) == 1
    assert store.spool_of(tracker.run_id).is_empty


def test_one_artifact_that_fails_for_good_lets_the_others_pass(
    store: RunStore, tracking: TrackingConfig
) -> None:
    tracker = store.start_run("a", "exp", {})
    tracker.log_text("a file", "notes")
    tracker.log_text("below a file", "notes/a.txt")  # cannot be: notes is no folder
    tracker.log_text("fine", "b.txt")
    tracker.finish("FINISHED")
    open_store(tracking)
    assert Path(store.client.download_artifacts(tracker.run_id, "b.txt")).read_text() == "fine"
    assert store.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_an_artifact_that_waits_is_never_overtaken_by_an_older_one(store: RunStore, outage: Outage) -> None:
    tracker = store.start_run("a", "exp", {})
    outage.error = MlflowException("away")
    tracker.log_text("old", "a.txt")
    outage.error = None
    tracker.log_text("new", "a.txt")
    tracker.finish("FINISHED")
    assert Path(store.client.download_artifacts(tracker.run_id, "a.txt")).read_text() == "new"


def test_a_resumed_run_doubles_no_point_that_waits_in_its_spool(
    store: RunStore, tracking: TrackingConfig, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store comes back between the outage and the resume, but nobody has replayed yet."""
    first = store.start_run("a", "exp", {})
    outage.error = MlflowException("away")
    first.log_epoch(0, {"val/loss": 1.0})
    first.log_summary({"best_epoch": 0})
    outage.error = None
    again = store.start_run(None, "exp", {}, run_id=first.run_id)  # the same store: nothing is replayed
    again.log_epoch(0, {"val/loss": 9.0})
    again.log_summary({"best_epoch": 0})
    again.finish("FINISHED")
    points = [
        (name, point.step, point.value)
        for name in ("val/loss", "best_epoch")
        for point in store.client.get_metric_history(first.run_id, name)
    ]
    assert points == [("val/loss", 0, 1.0), ("best_epoch", 1, 0.0)]


def test_an_epoch_that_a_kill_tore_is_recorded_on_resume(store: RunStore, outage: Outage) -> None:
    """Later epochs are recorded already; the checkpoint's history brings the missing one."""
    first = store.start_run("a", "exp", {})
    first.log_epoch(0, {"val/loss": 3.0})
    first.log_epoch(2, {"val/loss": 1.0})
    again = store.start_run(None, "exp", {}, run_id=first.run_id)
    for epoch, loss in enumerate([3.0, 2.0, 1.0]):
        again.log_epoch(epoch, {"val/loss": loss})
    history = store.client.get_metric_history(first.run_id, "val/loss")
    assert sorted((point.step, point.value) for point in history) == [(0, 3.0), (1, 2.0), (2, 1.0)]


# ── appending never waits for a replay ────────────────────────────────────────────────────────────


def test_an_epoch_is_kept_while_another_process_replays(store: RunStore, outage: Outage) -> None:
    """The other one is uploading a large checkpoint, and takes what came meanwhile along at its end."""
    tracker = store.start_run("a", "exp", {})
    outage.error = MlflowException("away")
    tracker.log_epoch(0, {"val/loss": 2.0})
    outage.error = None
    other = store.spool_of(tracker.run_id)
    uploading, go_on = threading.Event(), threading.Event()

    def apply_slowly(operation: dict[str, Any]) -> list[dict[str, Any]]:
        uploading.set()
        assert go_on.wait(60)
        return apply(store.client, other, operation)

    replaying = threading.Thread(target=lambda: other.replay(apply_slowly))
    replaying.start()
    assert uploading.wait(60)
    tracker.log_epoch(1, {"val/loss": 1.0})  # would never return if it waited
    assert len(other.records.operations()) == 2
    go_on.set()
    replaying.join(60)
    history = store.client.get_metric_history(tracker.run_id, "val/loss")
    assert [(point.step, point.value) for point in history] == [(0, 2.0), (1, 1.0)]
    assert other.is_empty


# ── what can never be recorded ────────────────────────────────────────────────────────────────────


def test_a_tag_that_no_database_takes_is_set_aside_once(
    store: RunStore, tracking: TrackingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that is not valid UTF-8, as the file system hands it out."""
    tracker = store.start_run("a", "exp", {})
    tracker.set_tags({"fine": "yes", "class": b"caf\xe9".decode("utf-8", "surrogateescape"), "too": "yes"})
    tracker.log_text("caf\udce9", "names.txt")
    tracker.finish("FINISHED")
    run = store.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["fine"], run.data.tags["too"]) == ("FINISHED", "yes", "yes")
    assert Path(store.client.download_artifacts(tracker.run_id, "names.txt")).read_text() == "caf\\udce9"
    spool = store.spool_of(tracker.run_id)
    assert [json.loads(line)["op"] for line in spool.refused.read_text().splitlines()] == ["tags"]
    caplog.clear()
    open_store(tracking)
    assert caplog.text == ""


def test_of_many_parameters_only_those_at_fault_are_refused(store: RunStore) -> None:
    tracker = store.start_run("a", "exp", {})
    tracker.log_params({f"key{i}": i for i in range(20)} | {"a name with a \n line break": 1})
    assert len(store.client.get_run(tracker.run_id).data.params) == 20


# ── a small $TMPDIR ───────────────────────────────────────────────────────────────────────────────


def test_recording_needs_no_temporary_folder(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there is none"))
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    tracker = store.start_run("a", "exp", {})
    tracker.log_text("text", "a.txt")
    tracker.log_figure(Figure(figsize=(1, 1)), "a.png")
    log_small_model(tracker, checkpoint)
    tracker.finish("FINISHED")
    assert {file.path for file in store.client.list_artifacts(tracker.run_id)} == {"a.txt", "a.png"}
    assert models_of(store, tracker.run_id) == ["READY"]
    assert list(store.spool_directory.rglob("*")) == []


def test_a_folder_of_runs_that_is_full_fails_no_trial(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = store.start_run("a", "exp", {})
    monkeypatch.setattr(Path, "write_text", raising(OSError(28, "No space left on device")))
    tracker.log_text("text", "a.txt")
    tracker.log_epoch(0, {"val/loss": 1.0})
    assert "a.txt is lost" in caplog.text
    assert len(store.client.get_metric_history(tracker.run_id, "val/loss")) == 1


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
