from __future__ import annotations

from pathlib import Path

import pytest

from harness.analysis.compare import compare_command
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking import names
from harness.tracking.runs import best_trial_of, find_checkpoint, find_runs, get_run, newest_sweep
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
    assert [r.run_id for r in find_runs(tracking, sweep="first")] == first
    good = find_runs(tracking, filter_string="metrics.`val/accuracy` > 0.6")
    assert {r.run_id for r in good} == {first[2], second[1]}
    assert [
        r.run_id for r in find_runs(tracking, sweep="second", filter_string="metrics.`val/accuracy` < 1")
    ] == [second[1]]
    assert {r.run_id for r in find_runs(tracking, run_ids=[first[1][:10], "second"])} == {first[1], second[0]}
    newest = newest_sweep(tracking)
    assert newest is not None
    assert newest.run_id == second[0]


def test_best_trial(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    ids = add_sweep(store, "first", [0.5, 0.9, None, 0.9], tmp_path)
    assert best_trial_of(tracking, "first").run_id == ids[2]  # of two equals the first
    assert best_trial_of(tracking, "first", higher_is_better=False).run_id == ids[1]
    store.reopen_run(ids[0]).set_tags({names.BEST_RUN: ids[4]})  # the sweep's own word counts
    assert best_trial_of(tracking, "first").run_id == ids[4]


def test_checkpoints_are_found(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    alone = store.start_run("alone", "digits", {names.KIND: "train"})
    with pytest.raises(TrackingError, match="has kept a checkpoint"):
        find_checkpoint(tracking)
    ids = add_sweep(store, "first", [0.5, 0.9, None], tmp_path)
    assert find_checkpoint(tracking)[1].name == "first-1.ckpt"
    assert find_checkpoint(tracking, ids[0])[0].run_id == ids[2]  # a sweep means its best trial
    assert find_checkpoint(tracking, ids[1])[1].name == "first-0.ckpt"
    with pytest.raises(TrackingError, match="kept no checkpoint"):
        find_checkpoint(tracking, alone.run_id)
    (tmp_path / "first-0.ckpt").unlink()
    with pytest.raises(TrackingError, match="moved or deleted"):
        find_checkpoint(tracking, ids[1])


def test_mistakes_get_one_line(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    ids = add_sweep(store, "first", [0.5, None], tmp_path)
    add_sweep(store, "empty", [], tmp_path)
    near = ids[1][:-1] + ("0" if ids[1][-1] != "0" else "1")
    requests = [
        (lambda: get_run(tracking, near), ids[1]),
        (lambda: get_run(tracking, "nothing like it"), "newest"),
        (lambda: find_runs(tracking, sweep="frist"), "did you mean 'first'"),
        (lambda: find_runs(tracking, filter_string="metrics.val/accuracy >"), "cannot be read"),
        (lambda: best_trial_of(tracking, "empty"), "no trial"),
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
    text = compare_command(tracking, output_dir=tmp_path / "out")
    lines = text.splitlines()
    assert lines[0] == "sweep new"
    assert [line.split()[0] for line in lines[2:5]] == ["trial-0001", "trial-0000", "trial-0002"]
    assert "optim.lr" in lines[1]
    assert "model.kind" not in lines[1]
    assert (tmp_path / "out" / "compare.csv").is_file()
    assert (tmp_path / "out" / "compare.md").is_file()


def test_compare_takes_what_it_is_given(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    ids = add_sweep(store, "first", [0.5, 0.9], tmp_path)
    text = compare_command(tracking, run_ids=[ids[1]])
    assert "trial-0000" in text
    assert "trial-0001" not in text
    assert "trial-0001" in compare_command(tracking, filter_string="metrics.`val/accuracy` > 0.6")
