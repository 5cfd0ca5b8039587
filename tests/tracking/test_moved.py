"""Runs that were moved, renamed, copied or deleted are found again, or refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.config.schema import TrackingConfig
from harness.errors import NoSuchRunError
from harness.tracking import names
from harness.tracking.choice import choose
from harness.tracking.moved import found_path, recorded_path
from harness.tracking.runs import find_runs, read_config
from harness.tracking.store import RunStore, open_store
from tests.tracking.conftest import Outage, end_of_process


def files_under(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.txt")}


def record_a_run(store: RunStore, *, absolute: bool) -> str:
    tracker = store.start_run("a", "exp", {names.KIND: "train"})
    checkpoint = store.directory / "checkpoints" / tracker.run_id / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    tracker.log_text("seed: 1", names.CONFIG_FILE)
    path = str(checkpoint) if absolute else recorded_path(checkpoint, store.directory)
    assert Path(path).is_absolute() is absolute
    tracker.set_tags({names.CHECKPOINT: path})
    tracker.finish("KILLED")
    return tracker.run_id


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "as earlier versions recorded it"])
@pytest.mark.parametrize("is_copied", [False, True])
def test_a_folder_of_runs_that_was_moved_is_used_where_it_is(
    store: RunStore, is_copied: bool, absolute: bool, tmp_path: Path
) -> None:
    run_id = record_a_run(store, absolute=absolute)
    old, new = store.directory, tmp_path / "renamed 50% #2" / "runs"
    new.parent.mkdir()
    if is_copied:
        shutil.copytree(old, new)
    else:
        old.rename(new)
    end_of_process()
    tracking = TrackingConfig(dir=str(new))
    moved = open_store(tracking)
    (run,) = find_runs(tracking)
    assert choose(tracking, run_id).checkpoint == new / "checkpoints" / run_id / "best.ckpt"
    assert read_config(run) == {"seed": 1}

    again = moved.start_run(None, "exp", {}, run_id=run_id)
    again.log_text("later", "later.txt")
    again.finish("FINISHED")
    moved.start_run("b", "exp", {}).log_text("new", "new.txt")
    assert files_under(new) == {"later.txt", "new.txt"}
    assert not (files_under(old) if is_copied else old.exists())


def test_a_place_that_somebody_chose_for_an_experiment_stays(store: RunStore, tmp_path: Path) -> None:
    chosen = tmp_path / "large disk" / "artifacts"
    chosen.mkdir(parents=True)
    identity = store.client.create_experiment("mine", artifact_location=chosen.as_uri())
    again = open_store(TrackingConfig(dir=str(store.directory)))
    assert again.client.get_experiment(identity).artifact_location == chosen.as_uri()


def test_what_waits_in_a_spool_is_recorded_after_a_move(
    store: RunStore, outage: Outage, tmp_path: Path
) -> None:
    tracker = store.start_run("a", "exp", {})
    outage.error = OSError("away")
    tracker.log_text("kept", "kept.txt")
    tracker.log_epoch(0, {"val/loss": 1.0})
    tracker.finish("FINISHED")
    new = tmp_path / "new"
    store.directory.rename(new)
    end_of_process()
    run = open_store(TrackingConfig(dir=str(new))).client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["val/loss"]) == ("FINISHED", 1.0)
    assert files_under(new / "artifacts") == {"kept.txt"}


def test_a_path_outside_of_the_folder_of_runs_stays_as_it_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "scratch" / "best.ckpt"
    runs = tmp_path / "runs"
    assert recorded_path(elsewhere, runs) == str(elsewhere)
    assert found_path(str(elsewhere), runs) == elsewhere
    assert found_path("sweeps/a/best.ckpt", runs) == runs / "sweeps" / "a" / "best.ckpt"


# ── deleted in MLflow's page ──────────────────────────────────────────────────────────────────────


def test_a_deleted_run_that_goes_on_is_restored_and_it_is_said(
    store: RunStore, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.start_run("a", "exp", {})
    first.log_epoch(0, {"val/loss": 2.0})
    store.client.delete_run(first.run_id)
    again = store.start_run(None, "exp", {}, run_id=first.run_id)
    again.log_epoch(0, {"val/loss": 9.0})
    again.log_epoch(1, {"val/loss": 1.0})
    again.finish("FINISHED")
    run = store.client.get_run(first.run_id)
    assert (run.info.lifecycle_stage, run.info.status) == ("active", "FINISHED")
    assert [point.value for point in store.client.get_metric_history(first.run_id, "val/loss")] == [2.0, 1.0]
    assert f"run {first.run_id} (a) had been deleted in MLflow: it is restored" in caplog.text


def test_a_run_that_the_store_does_not_hold_is_refused_at_once_with_the_fix(store: RunStore) -> None:
    with pytest.raises(NoSuchRunError, match=r"not found.*set MLFLOW_TRACKING_URI or tracking.dir"):
        store.start_run(None, "exp", {}, run_id="f" * 32)
