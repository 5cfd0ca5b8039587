from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking.store import RunStore, open_store


def test_artifacts_lie_under_the_tracking_folder(store: RunStore, tracking: TrackingConfig) -> None:
    store.start_run("a", "exp", {}).log_text("hello", "notes/a.txt")
    files = [path for path in (Path(tracking.dir) / "artifacts").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["a.txt"]


def test_nothing_is_written_elsewhere(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    open_store(tracking).start_run("a", "exp", {}).log_text("x", "a.txt")
    assert list(elsewhere.iterdir()) == []


def test_experiments_are_made_once(store: RunStore) -> None:
    assert store.experiment_id("exp") == store.experiment_id("exp")
    assert store.experiment_id("exp") != store.experiment_id("other")


def test_a_deleted_experiment_comes_back(store: RunStore) -> None:
    identity = store.experiment_id("exp")
    store.client.delete_experiment(identity)
    store.start_run("a", "exp", {})
    assert store.client.get_experiment(identity).lifecycle_stage == "active"


def test_children_name_their_parent(store: RunStore) -> None:
    parent = store.start_run("sweep", "exp", {})
    child = store.start_run("trial", "exp", {}, parent.run_id)
    found = store.client.get_parent_run(child.run_id)
    assert found is not None
    assert found.info.run_id == parent.run_id


def test_a_resumed_run_is_running_again(store: RunStore) -> None:
    first = store.start_run("a", "exp", {})
    first.finish("KILLED")
    again = store.start_run(None, "exp", {"more": "1"}, run_id=first.run_id)
    assert again.run_id == first.run_id
    run = store.client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["more"]) == ("RUNNING", "a", "1")


def test_adding_to_an_ended_run_changes_neither_status_nor_time(store: RunStore) -> None:
    first = store.start_run("a", "exp", {})
    first.log_epoch(0, {"val/loss": 1.0})
    first.finish("KILLED")
    before = store.client.get_run(first.run_id).info
    again = store.reopen_run(first.run_id)
    again.log_summary({"test/accuracy": 0.5})
    again.finish("FINISHED")
    after = store.client.get_run(first.run_id)
    assert (after.info.status, after.info.end_time) == ("KILLED", before.end_time)
    assert after.data.metrics["test/accuracy"] == 0.5


def test_unknown_run(store: RunStore) -> None:
    with pytest.raises(TrackingError, match="cannot be opened"):
        store.start_run(None, "exp", {}, run_id="f" * 32)
    with pytest.raises(TrackingError, match="cannot be opened"):
        store.reopen_run("f" * 32)


def one_line(error: pytest.ExceptionInfo[TrackingError]) -> bool:
    return "\n" not in str(error.value)


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="cannot be written") as error:
        open_store(TrackingConfig(dir=str(tmp_path / "file" / "mlruns")))
    assert one_line(error)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(TrackingError, match="cannot be used") as error:
        open_store(TrackingConfig(dir=str(tmp_path)))
    assert one_line(error)


def test_an_unfinished_creation_is_begun_anew(tmp_path: Path, empty_databases: list[Path]) -> None:
    (tmp_path / "mlflow.db.creating").write_bytes(empty_databases[1].read_bytes()[:5000])
    store = open_store(TrackingConfig(dir=str(tmp_path)))
    assert store.start_run("a", "exp", {}).run_id


def test_a_question_mark_in_the_path(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"\?"):
        open_store(TrackingConfig(dir=str(tmp_path / "what?")))


def test_the_environment_wins(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracking.dir}/mlflow.db")
    other = TrackingConfig(dir=str(tmp_path / "other"))
    run_id = open_store(other).start_run("a", "exp", {}).run_id
    assert not (tmp_path / "other" / "mlflow.db").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert open_store(tracking).client.get_run(run_id).info.run_name == "a"


def test_a_server_that_is_away(tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # discard: nobody listens
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9") as error:
        open_store(tracking)
    assert one_line(error)


def write_epochs(tracking: TrackingConfig, name: str) -> None:
    tracker = open_store(tracking).start_run(name, "together", {})
    for epoch in range(10):
        tracker.log_epoch(epoch, {"val/loss": 1 / (epoch + 1), "lr": 0.1})
    tracker.finish("FINISHED")


@pytest.mark.slow
def test_two_processes_write_one_store(tracking: TrackingConfig) -> None:
    """The experiment does not exist yet, so the two also race to create it."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_epochs, args=(tracking, f"writer {i}")) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    client = open_store(tracking).client
    experiment = client.get_experiment_by_name("together")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"writer 0", "writer 1"}
    assert {len(client.get_metric_history(run.info.run_id, "val/loss")) for run in runs} == {10}
    assert not list((Path(tracking.dir)).glob("spool/**/*.jsonl"))


PERCENT = r"installed under a path with a '%' \(.*50% done/.*\): move the project, or give make a VENV"


def test_an_mlflow_under_a_path_with_a_percent_sign_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "__file__", str(tmp_path / "50% done" / "mlflow" / "__init__.py"))
    with pytest.raises(TrackingError, match=PERCENT):
        open_store(TrackingConfig(dir=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_mlflow_that_really_lies_under_a_path_with_a_percent_sign_is_refused(tmp_path: Path) -> None:
    packages = tmp_path / "50% done"
    packages.mkdir()
    (packages / "mlflow").symlink_to(Path(mlflow.__file__).parent, target_is_directory=True)
    paths = os.pathsep.join([str(packages), str(Path(__file__).resolve().parents[2])])
    code = (
        "from harness.config.schema import TrackingConfig; from harness.errors import TrackingError\n"
        "from harness.tracking import store\n"
        "if {bare}: store._check_installation = lambda uri: None\n"
        "try: store.open_store(TrackingConfig(dir={runs!r}))\n"
        "except TrackingError as error: print(error)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code.format(bare=bare, runs=str(tmp_path / f"runs {bare}"))],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        for bare in (False, True)
    ]
    assert re.search(PERCENT, said[0].stdout), said
    assert "interpolation" in said[1].stdout + said[1].stderr, "MLflow can do it by now: refuse nothing"
