"""What people see of a sweep."""

from __future__ import annotations

import csv
import io
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.config.sweep import SweepConfig
from harness.search.report.leaderboard import history_figure, leaderboard_csv, leaderboard_table
from harness.search.report.messages import build_console
from harness.search.report.progress import (
    LiveProgress,
    PlainProgress,
    SweepView,
    build_progress,
    format_seconds,
    seconds_left,
    view_of,
)
from harness.search.report.verdict import judge
from harness.search.study.trials import TrialRow, ranked

SWEEP = SweepConfig.model_validate(
    {"space": {"optim.lr": {"type": "float", "low": 0.1, "high": 1}}, "num_trials": 4}
)

LOSSES = SweepConfig.model_validate({**SWEEP.model_dump(), "metric": "val/loss", "direction": "minimize"})


def row(number: int, state: Any = "running", **known: Any) -> TrialRow:
    absent = dict.fromkeys(
        ["score", "last_score", "best_epoch", "seconds", "run_id", "checkpoint", "reason", "owner"]
    )
    facts: dict[str, Any] = {
        "params": {"optim.lr": 0.12345},
        "epochs_done": 0,
        "max_epochs": 4,
        "deaths": 0,
        "attempt": 1,
    }
    return TrialRow(number=number, trial_id=number, state=state, **{**absent, **facts, **known})


def moment(*rows: TrialRow) -> SweepView:
    return replace(view_of(rows, SWEEP, 0.0, 2), elapsed_s=65.0)


def test_a_pipe_gets_plain_lines_whatever_the_environment_forces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "output").open("w+", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        console = build_console()
        progress = build_progress(console, "val/accuracy")
        progress.update(moment())
        progress.update(moment(row(1, "complete", score=0.7, epochs_done=1)))
        output.seek(0)
        written = output.read()
    assert isinstance(progress, PlainProgress)
    assert "trial 1 complete" in written
    assert "\x1b" not in written


def test_a_reader_that_leaves_ends_the_show_and_not_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        console = build_console()
        for number in range(3):
            console.print(f"line {number}")
    assert capsys.readouterr().err.count("nobody reads the output any more") == 1


def test_plain_lines_are_one_per_event_and_none_twice() -> None:
    output = io.StringIO()
    progress = PlainProgress(Console(file=output, width=200), "val/accuracy")
    old = row(0, "complete", score=0.5, epochs_done=4, seconds=10.0)
    begun, ended = row(1, epochs_done=1, last_score=0.6), row(1, "complete", score=0.7, epochs_done=1)
    failed = row(2, "failed", params={}, reason="no [red]disk[/red]")
    for view in (
        moment(old), moment(old, row(1)), moment(old, row(1)), moment(old, begun), moment(old, ended, failed)
    ):  # fmt: skip
        progress.update(view)

    assert output.getvalue().splitlines() == [
        "trial 1 started: lr=0.123",
        "trial 1 epoch 1/4: val/accuracy 0.6000",
        "trial 1 complete: val/accuracy 0.7000",
        "3/4 (1 failed) trials ended, best 0.7000 (trial 1), 1 min 05 s elapsed, about 10 s left",
        "trial 2 failed: val/accuracy – (no [red]disk[/red])",
        "3/4 (1 failed) trials ended, best 0.7000 (trial 1), 1 min 05 s elapsed, about 10 s left",
    ]


def test_the_live_table_shows_running_trials_and_the_best() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    progress = build_progress(console, "val/accuracy")
    assert isinstance(progress, LiveProgress)
    console.print(
        progress.render(moment(row(0, "complete", score=0.5), row(1, epochs_done=2, last_score=0.4)))
    )
    text = console.file.getvalue()  # type: ignore[attr-defined]

    assert "2/4" in text
    assert "0.4000" in text
    assert "best so far: val/accuracy 0.5000 · trial 0 · lr=0.123" in text
    assert isinstance(build_progress(Console(file=io.StringIO()), "val/accuracy"), PlainProgress)


def test_the_time_left_counts_what_running_trials_have_done() -> None:
    ended = row(0, "complete", seconds=100.0)

    assert seconds_left([row(0)], 4, 1) is None
    assert seconds_left([ended], 4, 1) == pytest.approx(300)
    assert seconds_left([ended], 4, 3) == pytest.approx(100)
    assert seconds_left([ended, row(1, epochs_done=2)], 4, 1) == pytest.approx(250)
    assert seconds_left([ended] * 4, 4, 2) == 0


def test_durations_are_said_as_people_say_them() -> None:
    assert [format_seconds(s) for s in (44.6, 65, 7500)] == ["45 s", "1 min 05 s", "2 h 05 min"]


def test_the_leaderboard_ranks_results_before_what_was_cut_short() -> None:
    rows = [row(0, "pruned", score=0.9), row(1, "complete", score=0.3), row(2, "complete", score=0.6),
            row(3, "failed")]  # fmt: skip

    assert [r.number for r in ranked(rows, "maximize")] == [2, 1, 0, 3]
    assert [r.number for r in ranked(rows, "minimize")] == [1, 2, 0, 3]


def test_the_csv_has_every_trial_unrounded() -> None:
    rows = [row(0, "complete", score=0.3), row(1, "complete", score=0.6, params={"finetune": "a,b"})]
    lines = list(csv.DictReader(io.StringIO(leaderboard_csv(rows, SWEEP, judge(rows, SWEEP)))))

    assert [line["trial"] for line in lines] == ["1", "0"]
    assert lines[0]["finetune"] == "a,b"
    assert lines[1]["optim.lr"] == "0.12345"


def test_the_table_names_columns_shortly_but_never_ambiguously() -> None:
    rows = [row(0, params={"optim.lr": 0.1, "other.lr": 0.2, "data.batch_size": 64})]
    headers = [str(column.header) for column in leaderboard_table(rows, LOSSES, judge(rows, LOSSES)).columns]

    assert headers == [
        "trial", "state", "val\nloss", "best\nepoch", "optim.lr", "other.lr", "batch\nsize", "minutes",
    ]  # fmt: skip


def test_the_history_shows_the_best_so_far() -> None:
    rows = [row(0, "complete", score=0.3), row(1, "complete", score=0.6), row(2, "complete", score=0.4)]
    axes = history_figure(rows, "maximize", "val/accuracy").axes[0]

    assert list(axes.lines[0].get_ydata()) == [0.3, 0.6, 0.6]  # type: ignore[arg-type]
