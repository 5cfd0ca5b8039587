"""Whole sweeps side by side: the budget of the smallest, what is refused, and the files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.cells import cell_len

from harness.analysis.sweeps import MEANING, compare_sweeps
from harness.config.schema import TrackingConfig
from harness.errors import TrackingError
from harness.tracking import names
from harness.tracking.choice import find_sweeps
from harness.tracking.store import RunStore, open_store


@pytest.fixture
def tracking(tmp_path: Path, made_store: None) -> TrackingConfig:
    return TrackingConfig(dir=str(tmp_path / "mlruns"))


@pytest.fixture
def store(tracking: TrackingConfig) -> RunStore:
    return open_store(tracking)


def add_sweep(
    store: RunStore,
    name: str,
    scores: Sequence[float | None],
    *,
    digest: str = "b" * 64,
    minutes: float = 2.0,
    metric: str = names.VAL_ACCURACY,
    outcomes: Sequence[str] = (),
) -> None:
    objective = {names.METRIC: metric, names.DIRECTION: "minimize" if metric.endswith("loss") else "maximize"}
    parent = store.start_run(name, "digits", {names.KIND: "sweep", names.SWEEP: name} | objective)
    for number, score in enumerate(scores):
        outcome = outcomes[number] if outcomes else "complete" if score is not None else "infeasible"
        tags = {names.KIND: "trial", names.SWEEP: name, names.TRIAL: str(number), names.OUTCOME: outcome}
        trial = store.start_run(f"trial-{number:04d}", "digits", tags, parent.run_id)
        trial.log_data(
            name="digits", digest=digest, source="", num_rows=9, class_names=["x"], context="validation"
        )
        trial.log_summary({names.TRAINED_SECONDS: 60 * minutes} | ({} if score is None else {metric: score}))
        trial.finish("FINISHED")
    parent.finish("FINISHED")


def test_sweeps_are_compared_at_the_budget_of_the_smallest(store: RunStore, tracking: TrackingConfig) -> None:
    add_sweep(store, "large", [0.1, 0.2, 0.4, 0.9], minutes=2.0)
    add_sweep(store, "small", [0.7, 0.8], minutes=3.0)
    compared = compare_sweeps(tracking, ["large", "small"])
    assert (compared.num_trials, compared.minutes) == (2, 6.0)
    small, large = compared.curves
    assert (small.name, large.name) == ("small", "large")  # 0.8 against the mean of .2 .4 .9 .4 .9 .9
    assert small.expected[1] == pytest.approx(0.8)
    assert large.expected[1] == pytest.approx(3.7 / 6)
    assert large.best == 0.9
    rows = {row[0]: row for row in compared.table()[1]}
    assert rows["large"][-1] == f"{large.expected[2]:.4f} (3 trials)"  # three of two minutes fit into six
    assert "of 2 trials each, small is expected to find a val/accuracy better by 0.1833" in compared.to_text()


def test_pruned_trials_count_and_those_without_a_score_are_the_worst(
    store: RunStore, tracking: TrackingConfig
) -> None:
    add_sweep(
        store, "a", [0.5, 0.3, None, 0.9], outcomes=["complete", "pruned", "infeasible", "running elsewhere"]
    )
    add_sweep(store, "b", [0.5, 0.6])
    curve = next(c for c in compare_sweeps(tracking, ["a", "b"]).curves if c.name == "a")
    assert curve.scores == (0.5, 0.3, 0.3)
    assert curve.outcomes == {"complete": 1, "pruned": 1, "infeasible": 1}


def test_a_lower_loss_is_better(store: RunStore, tracking: TrackingConfig) -> None:
    add_sweep(store, "high", [2.0, 3.0], metric="val/loss")
    add_sweep(store, "low", [1.0, 1.5, 1.2] * 8, metric="val/loss")
    compared = compare_sweeps(tracking, ["high", "low"])
    assert [curve.name for curve in compared.curves] == ["low", "high"]
    assert compared.curves[1].expected.tolist() == pytest.approx([2.5, 2.0])
    low, high = compared.curves[0].interval(2)
    assert low is not None
    assert high is not None
    assert low <= high


def test_sweeps_that_do_not_overlap_are_told_apart(store: RunStore, tracking: TrackingConfig) -> None:
    add_sweep(store, "good", [0.9 + number / 1000 for number in range(30)])
    add_sweep(store, "bad", [0.1 + number / 1000 for number in range(40)])
    add_sweep(store, "few", [0.12, 0.13, 0.11])
    text = compare_sweeps(tracking, ["good", "bad", "few"]).to_text()
    assert "than bad; the intervals do not overlap" in text
    assert "so few trials set no limit to what few may find" in text
    assert MEANING in text


def test_the_files(store: RunStore, tracking: TrackingConfig, tmp_path: Path) -> None:
    add_sweep(store, "a", [0.5, 0.6])
    add_sweep(store, "<b>", [0.7, 0.8, 0.85])
    compared = compare_sweeps(tracking, ["a", "<b>"])
    table, document, page = compared.write(tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(row["sweep"], row["trials"]) for row in rows] == [
        ("<b>", "1"), ("<b>", "2"), ("<b>", "3"), ("a", "1"), ("a", "2")
    ]  # fmt: skip
    assert document.read_text() == compared.to_markdown()
    html = page.read_text()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html.split("</script>", 1)[1].replace("\\u003cb\\u003e", "")
    assert 'src="http' not in html
    assert all(cell_len(line) <= 80 for line in compared.to_text(80).splitlines())


def test_what_cannot_be_compared_gets_one_line(store: RunStore, tracking: TrackingConfig) -> None:
    add_sweep(store, "a", [0.5, 0.6])
    add_sweep(store, "other images", [0.7], digest="c" * 64)
    add_sweep(store, "loss", [0.7], metric="val/loss")
    add_sweep(store, "empty", [None])
    for sweeps, says in (
        (["a"], "at least two"),
        (["a", "a"], "each named once"),
        (["a", "other images"], "validated on different images"),
        (["a", "loss"], "different objectives"),
        (["a", "empty"], "no trial with a score"),
        (["a", "b"], "no sweep 'b' is recorded"),
    ):
        with pytest.raises(TrackingError, match=says):
            compare_sweeps(tracking, sweeps)


def test_two_sweeps_of_one_name_are_told_apart_by_their_ids(
    store: RunStore, tracking: TrackingConfig
) -> None:
    add_sweep(store, "a", [0.5, 0.6])
    add_sweep(store, "a", [0.7, 0.8])
    ids = [run.run_id for run in find_sweeps(tracking)]
    compared = compare_sweeps(tracking, ids)
    assert {curve.name for curve in compared.curves} == {f"a ({run_id[:8]})" for run_id in ids}
