from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from harness.analysis.compare import compare_runs
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking import names
from harness.tracking.choice import choose, find_sweep, newest_sweep, trials_of
from harness.tracking.mlflow_tables import read_stored_runs
from harness.tracking.runs import find_runs, get_run
from harness.tracking.store import RunStore


def add_sweep(store: RunStore, name: str, accuracies: list[float | None], tmp_path: Path) -> list[str]:
    """Record a sweep; return the ids of its parent and its trials."""
    parent = store.start_run(name, "digits", {names.KIND: "sweep", names.SWEEP: name})
    ids = [parent.run_id]
    for number, accuracy in enumerate(accuracies):
        tags = {names.KIND: "trial", names.SWEEP: name, names.TRIAL: str(number)}
        trial = store.start_run(f"trial-{number:04d}", "digits", tags, parent.run_id)
        trial.log_params({"optim": {"lr": 10.0**-number}, "model": {"kind": "lenet"}})
        if accuracy is not None:
            checkpoint = tmp_path / f"{name}-{number}.ckpt"
            checkpoint.touch()
            trial.log_summary({"val/accuracy": accuracy})
            trial.set_tags({names.CHECKPOINT: str(checkpoint)})
        trial.finish("FINISHED" if accuracy is not None else "FAILED")
        ids.append(trial.run_id)
    parent.finish("FINISHED")
    return ids


def test_runs_come_back_as_they_were(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    ids = add_sweep(store, "first", [0.5], tmp_path)
    trial = get_run(tracking, ids[1])
    assert (trial.kind, trial.status, trial.sweep, trial.trial) == ("trial", "FINISHED", "first", 0)
    assert trial.parent_run_id == ids[0]
    assert trial.params == {"optim.lr": "1.0", "model.kind": "lenet"}
    assert trial.metrics == {"val/accuracy": 0.5}
    assert trial.minutes is not None
    assert 0 <= trial.minutes < 5


def test_runs_are_found_by_sweep_filter_and_reference(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    first = add_sweep(store, "first", [0.5, 0.9], tmp_path)
    second = add_sweep(store, "second", [0.7], tmp_path)
    assert [r.run_id for r in trials_of(tracking, find_sweep(tracking, "first"))] == first[1:]
    good = find_runs(tracking, filter_string="metrics.`val/accuracy` > 0.6")
    assert {r.run_id for r in good} == {first[2], second[1]}
    few = trials_of(tracking, find_sweep(tracking, "first"), "metrics.`val/accuracy` < 0.9")
    assert [r.run_id for r in few] == [first[1]]
    assert {r.run_id for r in find_runs(tracking, run_ids=[first[1][:10], "second"])} == {first[1], second[0]}
    newest = newest_sweep(tracking)
    assert newest is not None
    assert newest.run_id == second[0]


def test_mistakes_get_one_line(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    ids = add_sweep(store, "first", [0.5, None], tmp_path)
    add_sweep(store, "empty", [], tmp_path)
    near = ids[1][:-1] + ("0" if ids[1][-1] != "0" else "1")
    requests = [
        (lambda: get_run(tracking, near), ids[1]),
        (lambda: get_run(tracking, "nothing like it"), "newest"),
        (lambda: find_sweep(tracking, "frist"), "did you mean 'first'"),
        (lambda: find_runs(tracking, filter_string="metrics.val/accuracy >"), "cannot be read"),
        (lambda: choose(tracking, "empty"), "no trial"),
    ]
    for request, message in requests:
        with pytest.raises(TrackingError, match=message) as error:
            request()
        assert "\n" not in str(error.value)


def test_an_ambiguous_name(store: RunStore, tracking: TrackingConfig) -> None:
    ids = [store.start_run("twin", "digits", {}).run_id for _ in range(2)]
    with pytest.raises(TrackingError, match="2 runs are called") as error:
        get_run(tracking, "twin")
    assert all(identity[:12] in str(error.value) for identity in ids)


def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="nothing is recorded"):
        find_runs(TrackingConfig(dir=str(tmp_path / "mlruns")))
    assert not (tmp_path / "mlruns").exists()


def test_compare_takes_the_newest_sweep(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    add_sweep(store, "old", [0.1], tmp_path)
    add_sweep(store, "new", [0.5, 0.9, None], tmp_path)
    comparison = compare_runs(tracking)
    comparison.write(tmp_path / "out")
    lines = comparison.to_text().splitlines()
    assert lines[0] == "sweep new"
    assert [line.split()[0] for line in lines[2:5]] == ["trial-0001", "trial-0000", "trial-0002"]
    assert "optim.lr" in lines[1]
    assert "model.kind" not in lines[1]
    assert (tmp_path / "out" / "compare.csv").is_file()
    assert (tmp_path / "out" / "compare.md").is_file()


def test_compare_takes_what_it_is_given(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    ids = add_sweep(store, "first", [0.5, 0.9], tmp_path)
    text = compare_runs(tracking, run_ids=[ids[1]]).to_text()
    assert "trial-0000" in text
    assert "trial-0001" not in text
    assert "trial-0001" in compare_runs(tracking, filter="metrics.`val/accuracy` > 0.6").to_text()


def test_the_tables_say_what_mlflows_client_says(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = add_sweep(store, "first", [0.5, None, float("nan")], tmp_path)
    run = store.start_run(None, "other", {names.KIND: "train"})
    for context, digest in (("training", "a" * 64), ("validation", "b" * 64)):
        run.log_data(
            name="digits", digest=digest, source="here", num_rows=9, class_names=["x"], context=context
        )
    run.log_epoch(0, {"val/loss": float("inf"), "train/loss": 1.0})
    run.log_epoch(1, {"val/loss": 2.0, "train/loss": float("nan")})
    deleted = store.start_run("deleted", "other", {names.KIND: "train"})
    store.client.delete_run(deleted.run_id)
    filters = [
        "",
        "metrics.`val/accuracy` > 0.2",
        "tags.`harness.kind` = 'trial'",
        "params.`optim.lr` = '1.0'",
    ]
    from_tables = [find_runs(tracking, filter_string=one) for one in filters]
    monkeypatch.setattr("harness.tracking.runs.read_stored_runs", lambda *_: None)
    from_client = [find_runs(tracking, filter_string=one) for one in filters]
    assert [len(found) for found in from_tables] == [5, 1, 3, 1]
    assert repr(from_tables) == repr(from_client)  # NaN is not equal to itself
    (with_data,) = [found for found in from_tables[0] if found.run_id == run.run_id]
    assert with_data.val_digest is not None
    assert ids[0] in {found.run_id for found in from_tables[0]}


def test_a_server_is_asked_by_the_client(store: RunStore) -> None:
    server = MlflowClient("http://127.0.0.1:1")
    assert read_stored_runs(server, ["0"], "") is None
    assert read_stored_runs(store.client, ["0"], "") == []


def test_more_runs_than_one_query_asks_for(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.tracking.mlflow_tables.BATCH", 2)
    ids = add_sweep(store, "first", [0.1, 0.2, 0.3, 0.4], tmp_path)
    found = trials_of(tracking, find_sweep(tracking, "first"))
    assert [(run.run_id, run.metrics["val/accuracy"]) for run in found] == [
        (run_id, accuracy) for run_id, accuracy in zip(ids[1:], [0.1, 0.2, 0.3, 0.4], strict=True)
    ]
    assert all(run.params["model.kind"] == "lenet" for run in found)
