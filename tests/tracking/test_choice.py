"""Which sweep is meant, and which of its trials is best, from what the runs say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.compare import compare_runs
from harness.cli.main import main
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking import names
from harness.tracking.choice import choose, find_sweep, newest_sweep, read_sweep
from harness.tracking.store import RunStore, open_store

Trial = Mapping[str, Any]  # what a trial reached: score, outcome, status, metrics


def add_sweep(
    store: RunStore, folder: Path, name: str, trials: list[Trial], tags: Mapping[str, str] | None = None
) -> tuple[str, list[str]]:
    """Record a sweep that has not closed; return its parent's id, and its trials'."""
    parent = store.start_run(name, "digits", {names.KIND: "sweep", names.SWEEP: name, **(tags or {})})
    ids = []
    for number, reached in enumerate(trials):
        known = {names.KIND: "trial", names.SWEEP: name, names.TRIAL: str(number)}
        trial = store.start_run(f"trial-{number:04d}", "digits", known, parent.run_id)
        checkpoint = folder / f"{trial.run_id}.ckpt"
        checkpoint.touch()
        trial.log_summary(reached.get("metrics", {"val/accuracy": reached.get("score", 0.5)}))
        outcome = reached.get("outcome", "complete")
        told = {names.SCORE: repr(reached["score"])} if "score" in reached else {}
        trial.set_tags({names.CHECKPOINT: str(checkpoint), names.OUTCOME: outcome, **told})
        if (status := reached.get("status", "FINISHED")) != "RUNNING":
            trial.finish(status)
        ids.append(trial.run_id)
    return parent.run_id, ids


def when(called: float, active: float) -> dict[str, str]:
    return {names.CALLED_AT: str(called), names.ACTIVE_AT: str(active)}


FUTURE = 4e9  # seconds since 1970: after any run of a test has begun


def test_the_sweep_that_ran_last_is_meant_not_the_one_created_last(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    older, _ = add_sweep(store, tmp_path, "a", [{"score": 0.6}])
    add_sweep(store, tmp_path, "b", [{"score": 0.9}])
    store.note(older, when(FUTURE, FUTURE + 60))
    last = newest_sweep(tracking)
    assert last is not None
    assert last.run_id == older
    choice = choose(tracking)
    assert choice.run.sweep == "a"
    assert choice.why.startswith("sweep a (run")
    assert compare_runs(tracking).to_text().splitlines()[0] == "sweep a"


def test_sweeps_that_ran_at_the_same_time_are_asked_for_by_name(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    add_sweep(store, tmp_path, "a", [{"score": 0.6}], when(FUTURE, FUTURE + 60))
    parent, _ = add_sweep(store, tmp_path, "b", [{"score": 0.9}], when(FUTURE + 30, FUTURE + 90))
    with pytest.raises(TrackingError, match=rf"say which is meant: a \(--run .*b \(--run {parent[:12]}\)"):
        choose(tracking)
    assert choose(tracking, "a").run.sweep == "a"
    assert (
        compare_runs(tracking)
        .to_text()
        .splitlines()[:2][1]
        .startswith("note: at the same time ran a (--sweep ")
    )
    store.note(parent, when(FUTURE + 100, FUTURE + 110))  # called once more, alone
    assert choose(tracking).run.sweep == "b"


def test_what_was_pruned_infeasible_or_goes_on_is_never_best(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    trials: list[Trial] = [
        {"score": 0.6},
        {"metrics": {"val/accuracy": 0.9}, "outcome": "pruned"},
        {"score": 0.95, "outcome": "infeasible"},
        {"score": 0.99, "status": "KILLED"},  # ended once, and died before it could tell
        {"score": 0.98, "status": "RUNNING"},
        {"score": 0.97, "status": "FAILED"},
        {"score": 0.7},
        {"score": 0.7},
        {"score": float("nan")},
    ]
    _, ids = add_sweep(store, tmp_path, "s", trials)
    choice = choose(tracking)
    assert choice.run.run_id == ids[6]  # of two equals the first
    assert choice.is_best_of_sweep
    assert "trial 6 has the highest val/accuracy, 0.7000" in choice.why
    order = [trial.trial for trial in read_sweep(tracking, find_sweep(tracking, "s")).ranked]
    assert order == [6, 7, 0, 8, 1, 4, 3, 2, 5]
    table = compare_runs(tracking).to_text()
    rows = [line.split() for line in table.splitlines()[2:11]]
    assert [int(row[1]) for row in rows] == order
    assert [row[2] for row in rows[4:]] == ["pruned", "running", "killed", "infeasible", "failed"]


def test_the_sweeps_own_metric_and_direction_decide(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    objective = {names.METRIC: "val/loss", names.DIRECTION: "minimize"}
    scores = ((0.50, 0.80), (0.40, 0.70), (0.90, 0.81))
    trials = [{"score": loss, "metrics": {"val/loss": 9.0, "val/accuracy": best}} for loss, best in scores]
    _, ids = add_sweep(store, tmp_path, "s", trials, objective)
    assert choose(tracking).run.run_id == ids[1]
    assert "lowest val/loss, 0.4000" in choose(tracking).why
    lines = compare_runs(tracking).to_text().splitlines()
    assert lines[1].split()[3] == "val/loss"
    assert [line.split()[3] for line in lines[2:5]] == ["0.4000", "0.5000", "0.9000"]  # as told, not 9.0


def test_sweeps_of_one_name_are_kept_apart(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    older, old_ids = add_sweep(store, tmp_path, "x", [{"score": 0.95}, {"score": 0.6}], {names.BEST_RUN: "?"})
    store.note(older, {names.BEST_RUN: old_ids[1]})
    _, new_ids = add_sweep(store, tmp_path, "x", [{"score": 0.9}])
    assert choose(tracking).run.run_id == new_ids[0]
    assert choose(tracking, "x").run.run_id == new_ids[0]
    assert choose(tracking, older).run.run_id == old_ids[0]
    text = compare_runs(tracking, sweep="x").to_text()
    assert "1 runs" in text
    assert f"others of this name: --sweep {older[:12]}" in text
    assert "2 runs" in compare_runs(tracking, sweep=older[:12]).to_text()


def test_the_best_is_what_holds_now_not_what_was_noted_when_the_sweep_closed(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    parent, ids = add_sweep(store, tmp_path, "s", [{"score": 0.6}, {"score": 0.8}])
    store.note(parent, {names.BEST_RUN: ids[0]})
    choice = choose(tracking)
    assert choice.run.run_id == ids[1]
    assert choice.sweep is not None
    assert choice.sweep.num_judged == 2


def test_a_sweep_without_a_feasible_trial_has_no_best(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    add_sweep(store, tmp_path, "s", [{"score": 0.9, "outcome": "infeasible"}] * 2)
    with pytest.raises(TrackingError, match=r"no best trial \(of 2 recorded trials, 2 infeasible\): widen"):
        choose(tracking)
    assert compare_runs(tracking).to_text().count("infeasible") == 2


def test_trials_of_earlier_versions_say_it_less_clearly(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    parent = store.start_run("s", "digits", {names.KIND: "sweep", names.SWEEP: "s"})
    for number, (accuracy, tags) in enumerate(((0.6, {}), (0.9, {names.PRUNED: "true"}), (0.7, {}))):
        known = {names.KIND: "trial", names.SWEEP: "s", names.TRIAL: str(number), **tags}
        trial = store.start_run(f"trial-{number:04d}", "digits", known, parent.run_id)
        trial.log_summary({"val/accuracy": accuracy})
        trial.finish("FINISHED")
    best = read_sweep(tracking, find_sweep(tracking, "s")).best
    assert best is not None
    assert best.trial == 2


def test_checkpoints_are_found(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    alone = store.start_run("alone", "digits", {names.KIND: "train"})
    with pytest.raises(TrackingError, match="has kept a checkpoint"):
        choose(tracking)
    kept = tmp_path / "kept.ckpt"
    kept.touch()
    trained = store.start_run("trained", "digits", {names.KIND: "train", names.CHECKPOINT: str(kept)})
    assert choose(tracking).checkpoint == kept
    assert "the last run, as there is no sweep" in choose(tracking).why
    _, ids = add_sweep(store, tmp_path, "first", [{"score": 0.5}, {"score": 0.9}])
    assert choose(tracking).run.run_id == ids[1]
    assert choose(tracking, "first").run.run_id == ids[1]  # a sweep means its best trial
    asked_for = choose(tracking, ids[0])
    assert (asked_for.checkpoint.stem, asked_for.is_best_of_sweep) == (ids[0], False)
    assert choose(tracking, trained.run_id).sweep is None
    with pytest.raises(TrackingError, match="kept no checkpoint"):
        choose(tracking, alone.run_id)
    (tmp_path / f"{ids[0]}.ckpt").unlink()
    with pytest.raises(TrackingError, match="moved or deleted"):
        choose(tracking, ids[0])


def test_a_run_of_another_store_or_a_deleted_one_gets_one_line(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    _, ids = add_sweep(store, tmp_path, 'it\'s "x" 100%', [{"score": 0.5}, {"score": 0.4}])
    assert choose(tracking, 'it\'s "x" 100%').run.run_id == ids[0]
    store.client.delete_run(ids[1])
    for reference, message in (
        ("0" * 32, r"no run '0{32}' is recorded in .*; newest: .*trial-0000"),
        ("trial-000", "near: trial-0000"),
        (ids[1], "was deleted in MLflow: restore it"),
        ("it's \"y", "no run"),
        ("50%", "no run"),
        ("%", "no run"),
        ("back\\", "no run"),
    ):
        with pytest.raises(TrackingError, match=message) as error:
            choose(tracking, reference)
        assert "\n" not in str(error.value)


def test_a_folder_of_runs_that_cannot_be_written_is_read(
    store: RunStore,
    tracking: TrackingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_sweep(store, tmp_path, "s", [{"score": 0.5}])
    touch = Path.touch

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.is_relative_to(tracking.dir):
            raise PermissionError(13, "Permission denied", str(path))
        touch(path, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", refuse)
    assert choose(tracking).run.sweep == "s"
    monkeypatch.chdir(tmp_path)
    Path("reports").write_text("a file where the tables should go")
    assert main(["compare", "--mlruns", tracking.dir]) == 0
    text = capsys.readouterr().out
    assert "trial-0000" in text
    assert text.splitlines()[-1].startswith("not written: reports/compare cannot be written")
    assert main(["compare", "--mlruns", tracking.dir, "--output", "reports"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(TrackingError, match="cannot be written"):
        open_store(tracking)
